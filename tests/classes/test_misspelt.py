"""Class names with a word that may be misspelt."""

import pytest

from finelens.classes.misspelt import misspelt

NAMES = ["sunflower", "measuring tape", "castle", "hoofed mammal", "tiger lily", "screwdrivers", "scissors"]


@pytest.mark.parametrize(
    ("written", "word", "meant"),
    [
        ("sunflwer", "sunflwer", "sunflower"),
        ("Measuring tappe", "tappe", "tape"),
        ("catsle tower", "catsle", "castle"),
        ("tigr lily", "tigr", "tiger"),
        ("hoofed mammsl", "mammsl", "mammal"),
    ],
)
def test_one_slip_is_found(written: str, word: str, meant: str) -> None:
    found = misspelt([*NAMES, written])
    assert found == ({word: meant} if len(meant) > 4 else {})


def test_right_names_plurals_and_derived_words_are_none() -> None:
    assert misspelt([*NAMES, "tigers", "foxlike animals", "striped fish", "pied wagtails", "berries", "potted plant"]) == {}
    assert misspelt([*NAMES, "organisation", "grey harbours", "theatres"]) == {}
    assert misspelt([*NAMES, "aluminium can", "cheque", "programmes"]) == {}


def test_a_word_that_may_be_several_is_left_alone() -> None:
    assert misspelt([*NAMES, "fortrss"]) == {"fortrss": "fortress"}
    assert misspelt([*NAMES, "shrinp"]) == {}  # shrimp, shrine or shrink


def test_a_list_in_another_language_is_left_alone() -> None:
    assert misspelt(["Rotbuche", "Stieleiche", "Feldahorn", "Fichte", "Tannne"]) == {}
    assert misspelt(["木", "café", "Ель"]) == {}
