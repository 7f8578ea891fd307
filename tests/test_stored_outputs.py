"""How the check of stored outputs compares texts."""

import pytest

from tools.notebooks import same_text


@pytest.mark.parametrize(
    "old, new, same",
    [
        ("revision 83c80761e462", "revision 83c80761e462", True),  # 80761e462 is infinite
        ("revision 83c80761e462", "revision 83c80761e463", False),
        ("revision 83c80761e462", "revision 83c80761f462", False),
        ("loss 1.0000000001", "loss 1.0", True),
        ("loss 1.01", "loss 1.0", False),
        ("a  b", "a b", True),
        ("3 units", "3 groups", False),
    ],
)
def test_texts_are_compared_by_their_numbers(old, new, same):
    assert same_text(old, new) == same
