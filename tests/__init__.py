"""The tests, in folders as the code is; what several of them need is in `tests.helpers`."""

import pytest

# So that a failed assert there shows its values, as one in a test does.
pytest.register_assert_rewrite("tests.helpers")
