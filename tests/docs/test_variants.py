"""docs/lars.md has the equations and coefficients of the presets in lars/presets.py."""

import re

from lars import PRESETS
from tests.helpers import PROJECT

PAGE = (PROJECT / "docs" / "lars.md").read_text(encoding="utf-8")
ZERO = {"one": r"$\lambda = 1$", "skip": r"$\lambda = 1$, $u = g$", "raw": "the formula"}
MOMENTUM = {
    "classic": r"$v \leftarrow \mu v + \gamma \lambda u$ and $w \leftarrow w - v$",
    "trust": r"$v \leftarrow \mu v + \lambda u$ and $w \leftarrow w - \gamma v$",
    "none": r"$v \leftarrow \mu v + u$ and $w \leftarrow w - \gamma \lambda v$",
}


def test_every_preset_has_its_coefficients():
    rows = re.findall(r"^\| `([\w-]+)` \| .+ \| (\S+) \| (\S+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert [name for name, *_ in rows] == list(PRESETS)
    for name, trust_coefficient, eps, zero in rows:
        preset = PRESETS[name]
        assert (float(trust_coefficient), float(eps)) == (
            preset["trust_coefficient"], preset["eps"]
        ), name  # fmt: skip
        bound = ", no bound" if preset["trust_clip"] else ""
        assert zero == ZERO[preset["zero_norm"]] + bound, name


def test_every_preset_has_its_equation():
    for name, preset in PRESETS.items():
        section = " ".join(PAGE.split(f"\n### {name}\n")[1].split("\n#")[0].split())
        decay = r"\mu" if preset["trust_weight_decay"] == "momentum" else r"\beta"
        denominator = {
            "separate": rf"\lVert g \rVert + {decay} \lVert w \rVert",
            "decayed": r"\lVert g + \beta w \rVert",
        }[preset["trust_norm"]]
        if preset["eps"]:
            denominator += r" + \varepsilon"
        if preset["trust_clip"]:
            ratio = (
                rf"\min\left(\dfrac{{\eta \lVert w \rVert}}{{\gamma \, ({denominator})}},\ 1\right)"
            )
        else:
            ratio = rf"\dfrac{{\eta \lVert w \rVert}}{{{denominator}}}"
        assert rf"$\lambda = {ratio}$" in section, name
        assert MOMENTUM[preset["momentum_scaling"]] in section, name
        assert (r"1 in groups with $\beta = 0$" in section) == (preset["adapt"] == "decayed"), name
