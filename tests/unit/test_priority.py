import pytest

from fedsvc.domain.delivery import Priority
from fedsvc.domain.priority import OTHER_TYPE, default_priority, type_code, type_name

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


@pytest.mark.parametrize("name", ["Follow", "Accept", "Reject", "Undo", "Block", "Like", "Dislike"])
def test_what_a_person_waits_for_is_urgent(name: str) -> None:
    assert default_priority(name) is Priority.URGENT


@pytest.mark.parametrize("name", ["Create", "Update", "Flag", "Add", "Remove", "Move"])
def test_content_is_normal(name: str) -> None:
    assert default_priority(name) is Priority.NORMAL


@pytest.mark.parametrize("name", ["Announce", "Delete", "View", "like", ""])
def test_mass_traffic_and_unknown_types_are_bulk(name: str) -> None:
    assert default_priority(name) is Priority.BULK


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
