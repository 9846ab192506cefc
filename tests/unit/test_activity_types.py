import pytest

from fedsvc.domain.activity_types import OTHER_TYPE, type_code, type_name

CODES = {
    "Create": 1,
    "Update": 2,
    "Delete": 3,
    "Follow": 4,
    "Accept": 5,
    "Reject": 6,
    "Like": 7,
    "Dislike": 8,
    "Announce": 9,
    "Undo": 10,
    "Add": 11,
    "Remove": 12,
    "Block": 13,
    "Flag": 14,
    "Move": 15,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_a_stored_type_code_never_changes(name: str, code: int) -> None:
    assert type_code(name) == code
    assert type_name(code) == name


@pytest.mark.parametrize("name", ["", "View", "create"])
def test_other_types_share_one_code(name: str) -> None:
    assert type_code(name) == OTHER_TYPE


@pytest.mark.parametrize("code", [OTHER_TYPE, -1, 16, 255])
def test_a_code_without_a_name_is_no_error(code: int) -> None:
    assert type_name(code) == ""
