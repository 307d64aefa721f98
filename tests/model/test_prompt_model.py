"""Prompts are embedded without the layers of the language model, which are neither read nor held."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from llava.errors import UserError
from llava.mm_utils import tokenizer_image_token
from llava.model import loading
from llava.model.checkpoint_files import iterate_weights
from llava.model.loading import load_checkpoint, load_prompt_model
from llava.model.placement import choose_placement
from tests.conftest import TINY_LLAVA
from tests.model.test_loading import base, write_lora  # noqa: F401 - a fixture

CPU = choose_placement("cpu", None)
QUESTION = "What is it?"


def embed(model, tokenizer, image):
    encoder = model.prompt_encoder
    encoded = encoder.encode([encoder.preprocess(image)], [image.size])
    tokens = encoder.project(encoder.reduce(encoded, [QUESTION], [encoder.reducer]))
    ids = torch.tensor(tokenizer_image_token(f"USER: <image>\n{QUESTION} ASSISTANT:", tokenizer))
    return encoder.embed([ids], [tokens])[0]


def same_embeddings(folder, base_folder, image):
    whole = load_checkpoint(str(folder), base_folder, CPU)
    part = load_prompt_model(str(folder), base_folder, CPU)
    assert torch.equal(embed(part, part.tokenizer, image), embed(whole.model, whole.tokenizer, image))
    return part


def test_the_embeddings_are_those_of_the_whole_model(checkpoint_copy, pictures):
    folder = checkpoint_copy(mm_vision_token_reduce_func="TRIM:-1")
    part = same_embeddings(folder, None, pictures["img0.png"])
    names = set(part.state_dict())
    assert not any(
        "layers." in name and "vision_tower" not in name and "text_tower" not in name for name in names
    )


def test_the_layers_are_neither_read_nor_held(checkpoint_copy, monkeypatch):
    folder = checkpoint_copy()
    weights = dict(iterate_weights(folder))
    (folder / "pytorch_model.bin").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    read = {}
    open_weights = loading.open_weights

    class Counting:
        def __init__(self, name, weight):
            self.name, self.weight = name, weight

        def get_shape(self):
            return self.weight.get_shape()

        def get_dtype(self):
            return self.weight.get_dtype()

        def __getitem__(self, index):
            tensor = self.weight[index]
            read[self.name] = tensor.nbytes
            return tensor

    monkeypatch.setattr(
        loading,
        "open_weights",
        lambda where: {name: Counting(name, one) for name, one in open_weights(where).items()},
    )
    part = load_prompt_model(str(folder), None, CPU)
    needed = {
        name: tensor.nbytes
        for name, tensor in weights.items()
        if "embed_tokens" in name or "projector" in name
    }
    assert read == needed
    held = {name: tensor for name, tensor in part.state_dict().items() if "vision_tower" not in name}
    stored_numbers = sum(weights[name].numel() for name in needed)
    assert sum(tensor.numel() for tensor in held.values()) == stored_numbers
    assert sum(needed.values()) < sum(tensor.nbytes for tensor in weights.values()) / 2


def test_every_kind_of_checkpoint(checkpoint_copy, base, pictures):  # noqa: F811
    image = pictures["img0.png"]
    projector = base.parent / "llava-tiny-pretrain"
    projector.mkdir()
    shutil.copy(TINY_LLAVA / "config.json", projector)
    weights = {name: one for name, one in iterate_weights(TINY_LLAVA) if "mm_projector" in name}
    torch.save(weights, projector / "mm_projector.bin")
    same_embeddings(projector, str(base), image)

    adapter = base.parent / "llava-tiny-lora"
    lora = write_lora(adapter)
    trained = {name: one.clone() * 2 for name, one in lora.state_dict().items() if "mm_projector" in name}
    torch.save(trained, adapter / "non_lora_trainables.bin")
    same_embeddings(adapter, str(base), image)


def test_added_tokens_have_the_same_rows(checkpoint_copy, pictures):
    folder = checkpoint_copy(mm_use_im_patch_token=True, mm_use_im_start_end=True)
    part = same_embeddings(folder, None, pictures["img0.png"])
    whole = load_checkpoint(str(folder), None, CPU).model
    assert torch.equal(part.get_input_embeddings().weight, whole.get_input_embeddings().weight)


def test_an_adapter_of_the_embedding_table_is_refused(checkpoint_copy, base):  # noqa: F811
    adapter = base.parent / "llava-tiny-lora"
    write_lora(adapter)
    weights = {name: one for name, one in iterate_weights(TINY_LLAVA) if "mm_projector" in name}
    torch.save(
        {f"base_model.model.{name}": one for name, one in weights.items()},
        adapter / "non_lora_trainables.bin",
    )
    path = adapter / "adapter_model.safetensors"
    save_file({"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 1600)}, path)
    with pytest.raises(UserError, match="adapts the embedding table; merge it first"):
        load_prompt_model(str(adapter), str(base), CPU)
