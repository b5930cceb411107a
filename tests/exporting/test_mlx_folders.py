"""MLX: what mlx-lm is told, and that mlx-lm reads what it made."""

import json
import os

import pytest

import labkit as lk
from labkit.errors import LabkitError
from labkit.probing.texts import Texts

PROSE = lk.demo_texts()["modern prose"]


def test_mlx_lm_is_told_what_to_make(small_model, tmp_path, tools):
    tools("mlx_lm", "mlx")
    made = lk.export(small_model, tmp_path / "out", "mlx", check=False, progress=False)
    config = json.loads((made.folder / "config.json").read_text())
    assert config["quantization"] == {
        "quantize": True,
        "q_bits": 4,
        "q_group_size": 64,
        "trust_remote_code": False,
    }
    assert made.tools == {"mlx-lm": "0.32.2", "mlx": "0.32.4"}
    assert made.usage == "mlx_lm.chat --model ."
    card = (made.folder / "README.md").read_text()
    assert "library_name: mlx" in card
    assert "64 weights in a row share a scale" in card


def test_mlx_takes_no_texts(small_model, tmp_path, tools):
    tools()
    with pytest.raises(LabkitError) as caught:
        lk.export(small_model, tmp_path / "out", "mlx", calibration=PROSE, progress=False)
    assert str(caught.value) == "mlx is not calibrated; leave calibration out"


@pytest.mark.skipif(
    not os.environ.get("LABKIT_TOOLS"), reason="LABKIT_TOOLS=1 runs tools that uv fetches first"
)
def test_mlx_lm_reads_what_it_made(small_model, tmp_path):
    texts = Texts("prose", PROSE.passages[:2])
    made = lk.export(small_model, tmp_path / "out", "mlx", texts=texts, progress=False)
    # The weights are random; of another such model it would be above 1.
    assert made.checked.texts[0].kl.value < 0.4
