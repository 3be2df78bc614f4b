"""Tasks are different, checkable, and not passed by an echo of the question; files of others load."""

import json

import pytest

from entropix_lab.evaluation.tasks import Task, load_tasks, make_tasks, save_tasks, split


def test_tasks_are_different_and_repeat_by_seed():
    tasks = make_tasks(300)
    assert len({t.prompt for t in tasks}) == 300 and tasks == make_tasks(300) and tasks != make_tasks(300, seed=1)
    assert len({t.kind for t in tasks}) == 14
    assert make_tasks(20) == tasks[:20]
    with pytest.raises(ValueError, match="asked for 5000"):
        make_tasks(5000)


def test_no_task_is_passed_by_its_question_or_failed_by_its_answer():
    for task in make_tasks(500):
        assert not task.passes(task.prompt) and not task.passes("")
        assert task.passes(f"The answer is {task.answer}.")


@pytest.mark.parametrize(
    "task, good, bad",
    [
        (Task("", "Paris"), ["Paris", "It is paris, of course."], ["Parisian", "comparison"]),
        (Task("", "12", "number"), ["7 + 5 = 12.", "12.0", "so 12"], ["12 apples and 3 pears", "112", "-12", ""]),
        (Task("", "1,234", "number"), ["It is 1234", "$1,234"], ["1.234"]),
        (Task("", "a b", "exact"), [" a b\n"], ["a b.", "A b"]),
    ],
    ids=lambda x: x.check if isinstance(x, Task) else "",
)
def test_checks(task, good, bad):
    assert all(task.passes(text) for text in good) and not any(task.passes(text) for text in bad)


def test_a_bad_task_is_refused():
    with pytest.raises(ValueError, match="unknown"):
        Task("p", "a", "regex")
    with pytest.raises(ValueError, match="no number"):
        Task("p", "a", "number")


def test_files_come_back_as_they_went(tmp_path):
    save_tasks(tmp_path / "tasks.jsonl", make_tasks(50))
    assert load_tasks(tmp_path / "tasks.jsonl") == make_tasks(50)


def test_tuning_is_on_other_tasks(tmp_path):
    test, tuning = split(100, seed=3)
    assert len(test) == 100 and len(tuning) == 20 and not {t.prompt for t in test} & {t.prompt for t in tuning}
    assert len({t.kind for t in tuning}) > 7 and split(100, seed=3) == (test, tuning)
    save_tasks(tmp_path / "tasks.jsonl", test)
    assert sum(map(len, split(50, file=tmp_path / "tasks.jsonl"))) == 60
    with pytest.raises(ValueError, match="holds 100 tasks, needed are 90 and 18 more"):
        split(90, file=tmp_path / "tasks.jsonl")


def test_gsm8k_and_bad_lines(tmp_path):
    file = tmp_path / "gsm8k.jsonl"
    line = {"question": "How many?", "answer": "First 3 * 5 = <<3*5=15>>15.\nThen 15 more.\n#### 1,030"}
    file.write_text(json.dumps(line) + "\n\n")
    (task,) = load_tasks(file)
    assert task == Task("How many?", "1,030", "number", "gsm8k") and task.passes("That makes 1030.")
    trays = [
        {"question": f"How many rolls are on {n} trays of 7?", "answer": f"{n} * 7.\n#### {7 * n}"} for n in range(14)
    ]
    file.write_text("".join(json.dumps(tray) + "\n" for tray in trays))
    test, tuning = split(9, file=file)
    assert len(test + tuning) == 14 and {task.kind for task in test + tuning} == {"gsm8k"}
    assert all(task.passes(f"So it is {7 * int(task.prompt.split()[5])} rolls") for task in test + tuning)
    for bad in (
        "{",
        '{"prompt": "p"}',
        '{"question": "q", "answer": "42"}',
        "[1]",
        '{"prompt": "p", "answer": "a", "x": 1}',
    ):
        file.write_text(json.dumps(line) + "\n" + bad + "\n")
        with pytest.raises(ValueError, match="line 2"):
            load_tasks(file)
