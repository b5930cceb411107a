"""Libraries that quantise, as far as labkit's scripts call them: they say what they were told."""

from pathlib import Path

COMMON = """
import json, shutil
from pathlib import Path

def save(source, out, key, said):
    out = Path(out)
    out.mkdir(exist_ok=True)
    for path in Path(source).iterdir():
        shutil.copyfile(path, out / path.name)
    (out / "model.safetensors").chmod(0o600)
    config = json.loads((out / "config.json").read_text())
    config.pop("rope_theta", None)
    config["dtype"] = "float16"
    (out / "config.json").write_text(json.dumps({**config, key: said}))
    (out / "tokenizer_config.json").write_text('{"rewritten": true}')
    (out / "recipe.yaml").write_text("of the tool's own")
    (out / "quant_log.csv").write_text("0,0")
    (out / "README.md").write_text("the tool's card")
"""
MODULES = {
    "gptqmodel/__init__.py": """
import os
from fake_common import Path, json, save

class QuantizeConfig:
    def __init__(self, **said):
        self.said = {**said, "method": said["method"].value, "format": said["format"].value}

class GPTQModel:
    @classmethod
    def load(cls, source, config, **said):
        model = cls()
        model.source, model.said = source, {**config.said, **said}
        return model

    def quantize(self, calibration, **said):
        self.said |= {"read": [one["input_ids"] for one in calibration], **said}

    def save(self, out):
        said = {**self.said, "workers": os.environ["GPTQMODEL_CPU_WORKERS"], "quant_method": "gptq"}
        said["meta"] = {"uri": "https://example.com", "offload": "/tmp/gptqmodel_x", "list": ["/x"]}
        save(self.source, out, "quantization_config", said)
        (Path(out) / "quantize_config.json").write_text(json.dumps(said))
""",
    "gptqmodel/quantization.py": """
from enum import Enum

class METHOD(Enum):
    GPTQ, AWQ = "gptq", "awq"

class FORMAT(Enum):
    GPTQ, GEMM = "gptq", "gemm"
""",
    "gptqmodel-7.7.0.dist-info/METADATA": "Name: gptqmodel\nVersion: 7.7.0\n",
    "torch/__init__.py": "def manual_seed(seed):\n    pass\n",
    "mlx_lm/__init__.py": "",
    "mlx_lm/convert.py": """
from fake_common import save

def convert(source, mlx_path, **said):
    save(source, mlx_path, "quantization", said)
""",
    "mlx_lm-0.32.2.dist-info/METADATA": "Name: mlx-lm\nVersion: 0.32.2\n",
    "mlx-0.32.4.dist-info/METADATA": "Name: mlx\nVersion: 0.32.4\n",
    "compressed_tensors/__init__.py": "",
    "compressed_tensors/quantization.py": """
class QuantizationArgs(dict):
    pass

class QuantizationScheme(dict):
    def __setattr__(self, name, value):
        self[name] = value

class QuantizationConfig(dict):
    pass
""",
    "llmcompressor/__init__.py": """
from fake_common import save

def model_free_ptq(source, out, **said):
    save(source, out, "quantization_config", {"by": "file", **said})

def oneshot(model, dataset, recipe, **said):
    model.said = {"by": "gptq", "read": [one["input_ids"] for one in dataset], **recipe[0], **said}
""",
    "llmcompressor/modifiers/__init__.py": "",
    "llmcompressor/modifiers/gptq.py": "class GPTQModifier(dict):\n    pass\n",
    "llmcompressor-0.14.0.1.dist-info/METADATA": "Name: llmcompressor\nVersion: 0.14.0.1\n",
    "compressed_tensors-0.19.0.dist-info/METADATA": ("Name: compressed-tensors\nVersion: 0.19.0\n"),
    "datasets/__init__.py": """
class Dataset:
    from_list = staticmethod(list)
""",
    "transformers/__init__.py": """
from fake_common import save

class AutoModelForCausalLM:
    @classmethod
    def from_pretrained(cls, source, **said):
        model = cls()
        model.source, model.loaded = source, said
        return model

    def save_pretrained(self, out, **said):
        save(self.source, out, "quantization_config", {**self.said, **self.loaded, **said})
""",
    "exllamav3/__init__.py": "",
    "exllamav3/conversion/__init__.py": "",
    "exllamav3/conversion/convert_model.py": """
import sys
from fake_common import save

if __name__ == "__main__":
    told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    save(told["-i"], told["-o"], "quantization_config", told)
""",
    "exllamav3-1.6.5.dist-info/METADATA": "Name: exllamav3\nVersion: 1.6.5\n",
    "fake_common.py": COMMON,
}


def install(folder: Path, *packages: str) -> None:
    """Write some of the libraries into a folder, to be named in PYTHONPATH."""
    for name, text in MODULES.items():
        top = name.split("/")[0].split("-")[0].removesuffix(".py")
        if top in (*packages, "fake_common"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
