"""The notice that a small network is trained, which can take minutes."""

from torch import nn

from pmf_lightning.encoders.trained_cache import load_or_train


def test_training_is_announced_once(tmp_path, capsys):
    path = tmp_path / "a.pt"
    for _ in range(2):
        load_or_train(path, lambda: nn.Linear(1, 1), lambda: nn.Linear(1, 1), "the classifier")
    assert capsys.readouterr().err == f"the classifier is trained on these data once, and stored in {path}\n"
