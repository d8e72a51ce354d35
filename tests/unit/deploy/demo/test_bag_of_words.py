from __future__ import annotations

from pathlib import Path

from deploy.demo.data.csv_file import DataRow
from deploy.demo.report.bag_of_words import bag_of_words_accuracy
from schemas.conversation import Message, Part, Role
from schemas.datasets import Example

HELD_OUT = (DataRow("where is my parcel now", "delivery"), DataRow("send my money back please", "refund"))


def train(folder: Path, *pairs: tuple[str, str]) -> Path:
    rows = [
        Example(
            example_id="e",
            messages=(
                Message(role=Role.USER, content=(Part(type="text", text=text),)),
                Message(role=Role.ASSISTANT, content=label),
            ),
            group="g",
            prediction_ids=("p",),
            correction_ids=("c",),
        )
        for text, label in pairs
    ]
    (folder / "train.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return folder


def test_a_bag_of_words_learns_what_the_adapter_is_trained_on(tmp_path: Path) -> None:
    pairs = (("my parcel is late", "delivery"), ("I want my money back", "refund"))
    right = bag_of_words_accuracy(train(tmp_path, *pairs), HELD_OUT)
    assert right is not None and (right.value, right.n) == (1.0, 2)
    swapped = [(text, pairs[1 - number][1]) for number, (text, _) in enumerate(pairs)]
    wrong = bag_of_words_accuracy(train(tmp_path, *swapped), HELD_OUT)
    assert wrong is not None and wrong.value == 0.0


def test_with_one_label_there_is_no_rival(tmp_path: Path) -> None:
    assert bag_of_words_accuracy(train(tmp_path, ("my parcel is late", "delivery")), HELD_OUT) is None
