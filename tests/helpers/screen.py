"""A stand-in for a terminal."""

import io


class Screen(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """Return the lines that a terminal shows, on which a carriage return overwrites a line."""
        return [_shown(line) for line in self.getvalue().split("\n")]


class SecondStream(io.TextIOBase):
    """Another stream of the same terminal."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen

    def write(self, text: str) -> int:
        return self.screen.write(text)


def _shown(line: str) -> str:
    shown = ""
    for text in line.split("\r"):
        shown = text + shown[len(text) :]
    return shown.rstrip()
