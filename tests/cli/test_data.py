import pytest

from hwnas.cli.data import evenly_spread


@pytest.mark.parametrize(
    ("count", "length", "positions"),
    [
        (1, 7, [0]),
        (2, 7, [0, 6]),
        (4, 7, [0, 2, 4, 6]),
        (9, 3, [0, 1, 2]),
        (3, 100, [0, 50, 99]),  # 49.5 is rounded to the even one
        (0, 7, []),
        (4, 0, []),
    ],
)
def test_positions_are_evenly_spread(count, length, positions):
    assert evenly_spread(count, length) == positions
