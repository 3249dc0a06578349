"""A class as a whole: whose folder is whose, what came late, and answers that agree."""

from __future__ import annotations

import copy
import csv
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import classroom
import grade
import pytest
import release
import sync
from autograde import alike, collect, gradebook, layouts, results, roster

TWO = "02_forward_process"
Notebook = dict[str, Any]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Notebook, Notebook, Path]:
    """(student version, complete version, grading folder) of notebook 02."""
    folder = tmp_path_factory.mktemp("course")
    released = release.release([TWO], to=folder / "release", keep=folder / "grading")[TWO]
    source = sync.read_notebook(folder / "grading" / "source" / TWO / f"{TWO}.ipynb")
    gradebook.generate({TWO: source}, folder / "grading")
    return released, source, folder / "grading"


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- the roster -------------------------------------------------------------------------------------------------

PEOPLE = """\
id;name;E-mail;02_forward_process
20261;Jane Doe;jane.doe@uni.example;2026-12-08 17:40
20262;Wei Wang;;
20263;Wei Wang;ww3@uni.example;
20264;Ö, Änn;;
777;Bob;;
"""


@pytest.fixture
def people(tmp_path: Path) -> list[roster.Person]:
    (tmp_path / "roster.csv").write_text(PEOPLE, encoding="utf-8-sig")  # as spreadsheets write it
    return roster.read(tmp_path / "roster.csv", [TWO])


@pytest.mark.parametrize(
    ("folder", "number", "owner"),
    [
        ("20261", "", "Jane Doe"),
        ("doejane", "55", "Jane Doe"),  # Canvas
        ("Jane Doe", "55", "Jane Doe"),  # Moodle
        ("Doe, Jane", "", "Jane Doe"),
        ("jane.doe@uni.example", "", "Jane Doe"),
        ("jane_doe (20261)", "", "Jane Doe"),
        ("A\u0308nn O\u0308", "", "Ö, Änn"),  # as macOS packs it
        ("ww3", "", "Wei Wang (20263)"),
        ("weiwang", "20262", "Wei Wang (20262)"),
    ],
)
def test_a_folder_is_given_to_its_owner(people: list[roster.Person], folder: str, number: str, owner: str) -> None:
    strays: list[str] = []
    file = {Path("x.ipynb"): "x.ipynb"}
    found = roster.enrolled([layouts.Student(folder, number, files=file)], people, strays)
    assert [student.name for student in found if student.files] == [owner] and strays == [] and len(found) == 5


@pytest.mark.parametrize(
    ("folder", "number", "words"),
    [
        ("Wei Wang", "", "could be each of 20262, 20263"),
        ("Jane Doe", "777", "could be each of 20261, 777"),  # the platform's number is somebody else's id
        ("Ann O", "", "is not on"),
        ("Zed", "", "is not on"),
    ],
)
def test_a_folder_that_is_not_clearly_someones_keeps_its_name(
    people: list[roster.Person], folder: str, number: str, words: str
) -> None:
    strays: list[str] = []
    *_, last = roster.enrolled([layouts.Student(folder, number)], people, strays)
    assert last.name in (folder, f"{folder} (not on the roster)") and last.id == "" and words in strays[0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,email\nJane,j@x\n", "needs the columns id, name"),
        ("id,name\n1,Jane\n1,Bob\n", "line 3: the id '1' is missing or there twice"),
        ("id,name\n,Jane\n", "line 2: the id '' is missing"),
        (f"id,name,{TWO}\n1,Jane,yesterday\n", "line 2: 'yesterday' is no time"),
        ("", "needs the columns"),
        ("id,name\n1,J\xe4n\n", "cannot be read"),
    ],
)
def test_a_roster_that_cannot_be_used_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, words: str, book: Any
) -> None:
    path = tmp_path / "roster.csv"
    path.write_bytes(table.encode("latin-1"))
    with pytest.raises(roster.RosterError, match=words):
        roster.read(path, [TWO])
    (tmp_path / "in").mkdir()
    assert grade.main([str(tmp_path / "in"), "--out", str(book[2]), "--roster", str(path)]) == 1
    assert words in capsys.readouterr().err


def test_files_in_several_folders_and_who_handed_in_nothing(
    book: tuple[Notebook, Notebook, Path], people: list[roster.Person], tmp_path: Path
) -> None:
    classroom.write(tmp_path / "in", "doejane", f"{TWO}.ipynb", book[0])
    classroom.write(tmp_path / "in", "20261", "helper.py", b"x = 1")
    found, strays = collect.collect(tmp_path / "in", {TWO: book[0]}, tmp_path / "unpacked", people)
    by_name = {one.student: one for one in found}
    assert len(found) == 5 and strays == [], "each person of the roster once"
    assert by_name["Jane Doe"].handed_in == roster.moment("2026-12-08 17:40"), "the table's time, not the file's"
    assert by_name["Jane Doe"].beside.keys() == {"helper.py"}
    results.write_results(found, strays, tmp_path)
    assert "handed in nothing at all: Bob, Wei Wang (20262), Wei Wang (20263), Ö, Änn\n" in (
        tmp_path / "report.txt"
    ).read_text(encoding="utf-8")
    assert [row["id"] for row in read_csv(tmp_path / "points.csv") if row["student"] == "Jane Doe"] == ["20261"]
    (canvas,) = [row for row in read_csv(tmp_path / "canvas.csv") if row["Student"] == "Jane Doe"]
    assert (canvas["SIS User ID"], canvas["SIS Login ID"]) == ("20261", "jane.doe@uni.example")
    (moodle,) = [row for row in read_csv(tmp_path / "moodle.csv") if row["Full name"] == "Jane Doe"]
    assert (moodle["ID number"], moodle["Email address"]) == ("20261", "jane.doe@uni.example")


def test_two_people_of_one_name_on_a_platform_stay_two(tmp_path: Path) -> None:
    for number in (11, 12):
        (tmp_path / f"wangwei_{number}_99_a.ipynb").write_text("{}")
    students, _ = layouts.students_in(tmp_path, tmp_path / "unpacked")
    assert [(s.name, s.number, len(s.files)) for s in students] == [
        ("wangwei (11)", "11", 1),
        ("wangwei (12)", "12", 1),
    ]


# --- due dates --------------------------------------------------------------------------------------------------


def test_days_end_at_midnight_and_bad_times_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    name, due = grade.due_date(f"{TWO}=2026-12-08")
    assert name == TWO and due.replace(tzinfo=None) == datetime(2026, 12, 8, 23, 59, 59) and due.tzinfo is not None
    assert grade.due_date("x=2026-12-08 18:00")[1].replace(tzinfo=None) == datetime(2026, 12, 8, 18)
    for text in (f"{TWO}=soon", TWO):
        with pytest.raises(SystemExit):
            grade.main(["folder", "--due", text])
        assert "is no time: write it as 2026-12-08" in capsys.readouterr().err


def test_an_unknown_notebook_has_no_due_date(
    book: tuple[Notebook, Notebook, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grade.main([str(tmp_path), "--out", str(book[2]), "--due", "02=2026-12-08"]) == 1
    assert f"--due 02: the notebooks are {TWO}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hours", "per_day", "days", "share"),
    [
        (-1, 10, 0, 0),
        (0, 10, 0, 0),
        (0.1, 10, 1, 0.1),
        (24, 10, 1, 0.1),
        (25, 10, 2, 0.2),
        (900, 10, 38, 1),
        (25, 0, 2, 0),
    ],
)
def test_what_comes_late_loses_a_share_for_each_day_begun(
    book: tuple[Notebook, Notebook, Path], hours: float, per_day: float, days: int, share: float
) -> None:
    """By nbgrader, so that its own pages and exports agree."""
    released, source, out = book
    due = roster.moment("2026-12-08 18:00")
    gradebook.set_due(out, {TWO: due})
    handed_in = due + timedelta(hours=hours)
    one = collect.Submission("Ann", "Ann", TWO, out / "x.ipynb", released, handed_in=handed_in)
    solved = classroom.solve(released, source)  # nbgrader gives a test without outputs its points
    grade.scored(one, solved, released, out, out / "executed", per_day)
    assert (one.days_late, one.penalty) == (days, pytest.approx(13 * share)) and not one.trouble
    assert one.total == (pytest.approx(13 * (1 - share)), 13)
    assert ("late" in results.report([one], [])) == (days > 0)
    gradebook.set_due(out, {TWO: None})  # graded once more, without
    grade.scored(one, solved, released, out, out / "executed", per_day)
    assert (one.days_late, one.penalty) == (0, 0)


# --- answers that agree -----------------------------------------------------------------------------------------

JUMP = """# exercise: this notebook · jump
def jump(schedule, x_s, s, t, noise):
    bar = torch.cumprod(1 - schedule.betas, 0)
    share = bar[t] / bar[s]
    return share ** 0.5 * x_s + (1 - share) ** 0.5 * noise"""
RENAMED = """# exercise: this notebook · jump
def jump(schedule: NoiseSchedule, a: Tensor, begin: int, end: int, eps: Tensor) -> Tensor:
    '''From one step to a later one.'''
    products = torch.cumprod(1 - schedule.betas, 0)  # the bars

    k = (products[end] / products[begin])
    return k ** 0.5 * a + (1 - k) ** 0.5 * eps"""
OTHER = JUMP.replace("bar[t] / bar[s]", "torch.prod(1 - schedule.betas[s + 1 : t + 1])")
SNR = "# exercise: this notebook · snr\ndef snr(alpha_bar):\n    return alpha_bar / (1.0 - alpha_bar)"


def test_the_same_answer_twice_is_named_and_costs_nothing(book: tuple[Notebook, Notebook, Path]) -> None:
    released, source, _ = book
    own = classroom.solve(released, source)

    def handed_in(student: str, notebook: Notebook, **texts: str) -> collect.Submission:
        notebook = copy.deepcopy(notebook)
        for name, text in texts.items():
            notebook = classroom.with_text(notebook, name, text)
        return collect.Submission(student, student, TWO, Path("x"), notebook, points={"jump": (2.0, 2.0)})

    class_ = [
        handed_in("Ann", released, jump=JUMP, snr=SNR),
        handed_in("Bob", own, jump=RENAMED, snr=SNR),  # too short to tell
        handed_in("Cy", own, jump=OTHER),
        handed_in("Eve", own),  # the course's own, as Fay's
        handed_in("Fay", own),
        handed_in("Guy", released),  # unsolved, as Hal's
        handed_in("Hal", released, jump="def jump(:"),
    ]
    row = [TWO, "jump", "Ann; Bob", "but for names, comments and layout", "2"]
    assert alike.alike(class_, {TWO: source}) == [row]
    assert alike.alike(class_[:1] + [handed_in("Bob", own, jump=JUMP)], {TWO: source})[0][3] == "to the letter"
    assert all(one.points == {"jump": (2.0, 2.0)} for one in class_)


@pytest.mark.parametrize(
    ("change", "to"),
    [("0.5 * x_s", "2 * x_s"), ("bar[t] / bar[s]", "bar[s] / bar[t]"), ("cumprod", "cumsum"), ("+ (1", "- (1")],
)
def test_answers_that_do_something_else_are_not_the_same(change: str, to: str) -> None:
    def form(text: str) -> Any:
        return alike.form({"cell_type": "code", "source": text})

    assert change in JUMP and form(JUMP) is not None and form(JUMP) == form(RENAMED)
    assert form(JUMP.replace(change, to)) != form(JUMP)
