from collections import Counter

from petl_ray.tuning.brackets import Brackets


def test_shares_are_those_of_the_paper() -> None:
    """Li et al. 2018, table 1: R = 81, eta = 3 gives brackets of 81, 34, 15, 8 and 5 configurations."""
    dealt = Brackets(5, 3.0)
    counts = Counter(dealt.of(number) for number in range(1, 1 + 81 + 34 + 15 + 8 + 5))
    assert [counts[bracket] for bracket in range(5)] == [81, 34, 15, 8, 5]


def test_a_bracket_follows_from_the_number_whoever_is_asked_first() -> None:
    forth, back = Brackets(4, 2.0), Brackets(4, 2.0)
    numbers = list(range(50))
    assert [forth.of(number) for number in numbers] == [back.of(number) for number in reversed(numbers)][::-1]


def test_the_default_recipe_is_never_cut_and_a_short_search_holds_every_bracket() -> None:
    brackets = Brackets(4, 2.0)
    assert brackets.of(0) == 3
    assert {brackets.of(number) for number in range(1, 8)} == {0, 1, 2, 3}
