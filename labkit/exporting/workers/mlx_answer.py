"""Asks a model in mlx-lm what it expects after every token.

mlx's wheel for Linux brings the reference BLAS, which takes 10 s for a passage of 100 tokens, and
multiplies quantised matrices as slowly. There numpy multiplies by the weights, once mlx has made
floats of them; all else is mlx's. With a Mac's GPU the model runs as it is.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> None:
    """Answer what `job.json` asks."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    import mlx.core as mx
    from mlx_lm.utils import load

    model = load(job["model"])[0]
    model.eval()
    if not mx.metal.is_available():
        # In bfloat16 mlx adds up in bfloat16 on a CPU: the model would be another one.
        model.set_dtype(mx.float32)
        multiply_by_numpy(model)
    for number, tokens in enumerate(job["sequences"]):
        logits = model(mx.array([tokens]))[0].astype(mx.float32)
        values = np.array(logits).astype(np.float64)
        values -= values.max(-1, keepdims=True)
        values -= np.log(np.exp(values).sum(-1, keepdims=True))
        np.save(folder / f"{number}.npy", values.astype(np.float32))
    tools = {name: importlib.metadata.version(name) for name in ("mlx-lm", "mlx")}
    (folder / "result.json").write_text(json.dumps({"tools": tools}), encoding="utf-8")


def multiply_by_numpy(model: Any) -> None:
    """Put numpy's products in place of those with quantised weights."""
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_unflatten

    class Multiplied(nn.Module):  # type: ignore[misc]
        """A linear module; or an embedding, which may be the head too."""

        def __init__(self, quantised: Any) -> None:
            super().__init__()
            weight = mx.dequantize(
                quantised.weight,
                quantised.scales,
                quantised.biases,
                group_size=quantised.group_size,
                bits=quantised.bits,
            )
            # In a tuple, so that mlx does not take it for a parameter.
            self._weight = (np.array(weight.astype(mx.float32)),)
            self._bias = quantised.get("bias")
            self._rows = isinstance(quantised, nn.QuantizedEmbedding)

        def __call__(self, x: Any) -> Any:
            return mx.array(self._weight[0][np.array(x)]) if self._rows else self.as_linear(x)

        def as_linear(self, x: Any) -> Any:
            out = mx.array(np.array(x) @ self._weight[0].T)
            return out if self._bias is None else out + self._bias

    modules = [
        (name, Multiplied(module))
        for name, module in model.named_modules()
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding))
    ]
    model.update_modules(tree_unflatten(modules))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
