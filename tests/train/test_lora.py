"""Adapters as they are written: any peft that users have reads them, as what they are."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from peft import LoraConfig, PeftConfig

from llava.train.lora import OLD_CONFIG_KEYS, drop_new_keys
from llava.train.train import train

LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8}


def config_of(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


def test_adapters_and_checkpoints_hold_what_old_versions_of_peft_know(
    command, language_model: Path, tmp_path: Path
):
    train(argv=command("finetune", max_steps=1, save_strategy="steps", save_steps=1, **LORA))
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        assert config_of(folder).keys() == OLD_CONFIG_KEYS
        read = PeftConfig.from_pretrained(str(folder))
        linear = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
        written = LoraConfig(
            r=4,
            lora_alpha=8,
            lora_dropout=0.05,
            target_modules=linear,
            task_type="CAUSAL_LM",
            inference_mode=True,
            base_model_name_or_path=str(language_model),
        )
        assert read == written


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, set()),
        ({"use_dora": True}, {"use_dora"}),
        ({"lora_bias": True, "exclude_modules": ["q_proj"]}, {"lora_bias", "exclude_modules"}),
    ],
)
def test_a_newer_key_stays_where_it_says_something(changes: dict, kept: set[str], tmp_path: Path):
    config = replace(LoraConfig(r=4, target_modules=["v_proj"], rank_pattern={"v_proj": 2}), **changes)
    config.save_pretrained(str(tmp_path))
    assert len(config_of(tmp_path).keys() - OLD_CONFIG_KEYS) > len(kept)
    drop_new_keys(tmp_path)
    assert config_of(tmp_path).keys() == OLD_CONFIG_KEYS | kept
    assert PeftConfig.from_pretrained(str(tmp_path)) == config
