"""Makes tiny base models and LoRA adapters with transformers and peft."""

from __future__ import annotations

import json
import warnings

import torch

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_base(folder, dtype=torch.bfloat16, layers=4, shard="60KB", **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    settings = {
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "tie_word_embeddings": True,
        **changes,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "LICENSE").write_text("the base's licence")
    return folder


def make_adapter(folder, base, scale=0.02, **changes):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ALL_LINEAR,
        "task_type": "CAUSAL_LM",
        **changes,
    }
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**settings))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "lora_A" in name:
                torch.nn.init.normal_(parameter, std=scale)
        wrapped.save_pretrained(folder)
    config = folder / "adapter_config.json"
    content = json.loads(config.read_text())
    content["base_model_name_or_path"] = "tiny-llama"
    config.write_text(json.dumps(content))
    return folder


def merged_by_peft(base, adapter, gradient=None):
    """The state dict of peft's merge in float32, each layer's scaling times its weight."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(model, adapter)
    for name, module in wrapped.named_modules():
        if isinstance(module, LoraLayer) and gradient is not None:
            layer = int(name.split(".layers.")[1].split(".")[0])
            for key in module.scaling:
                module.scaling[key] *= gradient[layer]
    return wrapped.merge_and_unload().state_dict()


def make_tokenizer(folder, template=None):
    """A tokenizer of single ASCII characters, with a chat template where one is given."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(code): code for code in range(1, 128)} | {"<unk>": 0}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder
