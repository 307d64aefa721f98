"""CLIP as the vision tower: its vision encoder, cut at the selected layer, with the token reducer behind it.

Shapes: B images, N patches per image, D width of the tower, E width of CLIP's joint space.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPVisionConfig

from llava.errors import MissingFileError, UserError
from llava.model.checkpoint_configs import read_clip_configs, read_image_processor
from llava.model.checkpoint_files import name_elsewhere, own_file, resolve_folder
from llava.model.cuda_graphs import Recorder, Recordings
from llava.model.input_checks import check_images, check_pixels, check_texts
from llava.model.multimodal_encoder.clip_weights import (
    NextLayer,
    load_next_layer,
    load_text_half,
    load_vision_half,
)
from llava.model.multimodal_encoder.cut_encoder import CutVisionModel
from llava.model.multimodal_encoder.image_inputs import ALONE, Surroundings, TowerImage
from llava.model.multimodal_encoder.reducers.attention import cls_attention
from llava.model.multimodal_encoder.reducers.base import Method, Signal
from llava.model.multimodal_encoder.reducers.registry import parse_reduction, signals_of
from llava.model.multimodal_encoder.signals import read_signals
from llava.model.multimodal_encoder.text_encoder import TEXT_LOCK, TextEncoder, without_autocast
from llava.model.multimodal_encoder.token_reduction import (
    Reducer,
    ReducerInputs,
    Trim,
    VisualTokens,
    order_and_merge,
    pack_tokens,
    patch_relevance,
    patch_scores,
)
from llava.model.placement import hand_over
from llava.model.splice import ImageText
from llava.tokenizer import load_clip_tokenizer

COMPILERS = ("g++", "clang++", "c++")
SELECT_FEATURES = ("patch", "cls_patch")
RECORDED_IMAGES, RECORDED_CHOICES = 8, 16  # of a recorded batch; more take longer to compute than to start


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Passes of the tower that are replayed."""

    vision: Recordings
    choice: Recordings
    text: Recordings


class CLIPVisionTower(nn.Module):
    """CLIP's vision encoder, cut at the selected layer, with the token reducer behind it.

    CLIP is held once: its two halves are submodules under the names that published checkpoints use, the
    layers above the selected one are never built, and the text encoder is loaded only when a reducer asks for
    it. All of it is frozen.

    Attributes:
        vision_tower_name: Hub id or folder of a whole CLIP checkpoint.
        folder: Where that was found, once loaded.
        name_elsewhere: The name under which a checkpoint in any folder finds it, once loaded.
        select_layer: Which of the encoder's hidden states are the patch features; LLaVA-1.5 reads -2.
        select_feature: ``patch`` leaves the CLS token out, ``cls_patch`` keeps it in front.
        token_reduction: The reducer in force; change it with `set_token_reduction`.
        vision_tower: CLIP's vision encoder with its projection, once loaded.
        has_own_weights: Whether its weights were trained with a checkpoint and come from there.
        text_tower: CLIP's text encoder with its projection, once needed.
    """

    vision_tower: CutVisionModel
    text_tower: CLIPTextModelWithProjection | None

    def __init__(self, vision_tower: str, args: Any, delay_load: bool = False) -> None:
        """Remember what to load; load it at once unless ``delay_load``.

        Args:
            vision_tower: Hub id or folder of a whole CLIP checkpoint.
            args: Anything with the ``mm_vision_*`` attributes of a LLaVA config.
            delay_load: Wait for `load_model`, as a checkpoint that is being read does.

        Raises:
            UserError: If the token reduction or the selected feature is not one of the accepted ones.
        """
        super().__init__()
        self.vision_tower_name = vision_tower
        self.select_layer = int(args.mm_vision_select_layer)
        self.select_feature = getattr(args, "mm_vision_select_feature", None) or "patch"
        if self.select_feature not in SELECT_FEATURES:
            raise UserError(
                f"mm_vision_select_feature is {self.select_feature!r}; accepted: {', '.join(SELECT_FEATURES)}"
            )
        self.token_reduction: Reducer = parse_reduction(getattr(args, "mm_vision_token_reduce_func", None))
        self.is_loaded = False
        self.has_own_weights = False
        self._text_encoder: TextEncoder | None = None
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._recorded: _Recorded | None = None
        self._next_layer: list[NextLayer] = []  # once needed; no submodule, since no checkpoint has it
        if not delay_load:
            self.load_model()

    def load_model(
        self,
        device_map: Any = None,
        *,
        beside: Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load CLIP from its folder or from the hub; does nothing if it is loaded.

        Args:
            device_map: LLaVA's argument for the place of the tower: a device, or ``auto`` for the default
                one.
            beside: The LLaVA checkpoint next to which the CLIP folder may lie.
            device: Where to put the weights; by default where ``device_map`` says, else the CPU.
            dtype: Their type. Relevance is computed in float32 whatever it is.

        Raises:
            MissingFileError: If CLIP is not found; the message says how to name another one.
        """
        if self.is_loaded:
            return
        if device is None:
            device = (
                device_map if isinstance(device_map, (str, torch.device)) and device_map != "auto" else "cpu"
            )
        self.folder = self._find_folder(beside)
        self.name_elsewhere = name_elsewhere(self.vision_tower_name, beside)
        self.image_processor = read_image_processor(self.folder)
        vision, self._text_config = read_clip_configs(self.folder)
        self._check_crop(vision.image_size)
        self.vision_tower = load_vision_half(vision, self.select_layer, self.folder)
        self.vision_tower.to(device=device, dtype=dtype)
        self.text_tower = None
        self.is_loaded = True
        self.set_token_reduction(self.token_reduction)

    def require_loaded(self) -> None:
        """Refuse to go on without CLIP's weights.

        Raises:
            UserError: If they are not loaded.
        """
        if not self.is_loaded:
            raise UserError(
                f"the vision tower {self.vision_tower_name!r} is not loaded yet: call its load_model(), "
                "as llava.load_pretrained_model does"
            )

    def _find_folder(self, beside: Path | None) -> Path:
        try:
            return resolve_folder(self.vision_tower_name, beside)
        except MissingFileError as error:
            raise MissingFileError(
                f"the checkpoint's CLIP (mm_vision_tower) was not found: {error}; name a folder or hub id "
                "that holds it with --vision-tower (vision_tower= in Python); LLaVA-1.5 uses "
                "openai/clip-vit-large-patch14-336"
            ) from None

    def _require(self, name: str) -> None:
        """Refuse a CLIP folder without a file of this name."""
        if own_file(self.folder, name) is None:
            raise MissingFileError(f"the CLIP folder {self.folder} has no {name}")

    def _check_crop(self, side: int) -> None:
        """Refuse a preprocessor whose images are not of the side, in pixels, that the vision encoder sees.

        Raises:
            UserError: If they are not, or may be smaller before they are cut, or are not cut.
        """
        path, processor = self.folder / "preprocessor_config.json", self.image_processor
        crop, is_cut = processor.crop_size, processor.do_center_crop
        if (crop["height"], crop["width"]) != (side, side):
            raise UserError(
                f"{path} makes images of {crop['width']} x {crop['height']} pixels, and this CLIP sees "
                f"{side} x {side}"
            )
        given = {name: processor.size.get(name) for name in ("height", "width", "shortest_edge")}
        size = {name: pixels for name, pixels in given.items() if pixels}
        is_small = processor.do_resize and min(size.values()) < side
        if is_small or not (is_cut or size == {"height": side, "width": side}):
            raise UserError(
                f"{path} has size {size} and do_center_crop {is_cut}, which do not give the {side} x {side} "
                "pixels that this CLIP sees"
            )

    def set_token_reduction(self, reduction: Reducer | str | None) -> None:
        """Change the reducer, loading CLIP's text encoder if it is the first to ask for it.

        Raises:
            UserError: If the setting is not accepted, or CLIP's folder has no text encoder.
        """
        reducer = parse_reduction(reduction) if reduction is None or isinstance(reduction, str) else reduction
        if self.is_loaded:
            self.prepare(reducer)
        self.token_reduction = reducer

    def prepare(self, reducer: Reducer) -> None:
        """Load what a reducer needs of CLIP.

        Raises:
            UserError: If this tower lacks it, or its images have another number of patches than the reducer
                can do with.
        """
        if reducer.needs_question:
            self.load_text_encoder()
        if not isinstance(reducer, Method):
            return
        if self.select_feature != "patch":
            raise UserError(
                f"{reducer} tells CLS from the patches, and mm_vision_select_feature is "
                f"{self.select_feature!r}; accepted with it: patch"
            )
        if reducer.reads and not len(self.vision_tower.vision_model.encoder.layers):
            raise UserError(
                f"{reducer} reads layers, and mm_vision_select_layer {self.select_layer} leaves none"
            )
        if reducer.needs_next_layer:
            self._load_next_layer()
        reducer.check(self.num_patches)

    def load_text_encoder(self) -> TextEncoder:
        """Return CLIP's text encoder, loaded by the first that asks for it.

        Raises:
            UserError: If CLIP's folder has none.
        """
        # Loaded as other weights are, even if a request asks for it in inference mode.
        with TEXT_LOCK, torch.inference_mode(False):
            if self._text_encoder is None:
                config = self._text_config
                if config is None:
                    raise UserError(
                        "the token reduction reads the question with CLIP's text encoder, which "
                        f"{self.folder} lacks"
                    )
                if self.vision_tower.config.projection_dim != config.projection_dim:
                    raise UserError(
                        "the token reduction compares patches with the question, and the CLIP folder "
                        f"{self.folder} has no projection of both into one space (visual_projection)"
                    )
                if own_file(self.folder, "tokenizer.json") is None:
                    # transformers would make a tokenizer that knows no words, to which all questions are the
                    # same.
                    self._require("vocab.json")
                    self._require("merges.txt")
                tokenizer = load_clip_tokenizer(self.folder, config)
                text_tower = load_text_half(config, self.folder).to(device=self.device, dtype=self.dtype)
                self.text_tower = text_tower
                self._text_encoder = TextEncoder(text_tower, tokenizer, self._embed_ids)
            return self._text_encoder

    def forward(
        self, images: Tensor | Sequence[Tensor], texts: Sequence[ImageText] | str | None = None
    ) -> Tensor | list[Tensor]:
        """See a batch of images and keep what matters for their questions: LLaVA's call of the tower.

        Args:
            images: Pixels in any floating-point dtype, (B, 3, height, width), or a list of (3, height,
                width).
            texts: The question of each image; one for all of them may be given alone. Several texts for one
                image count by the average of their dot products.

        Returns:
            Visual tokens in the tower's width and type: (B, n, D) where all images have n of them, as without
            a reducer, otherwise one (n_i, D) per image. For a list of images, a list of (1, n_i, D). They are
            packed, with what was kept, in `select`.

        Raises:
            UserError: If the reducer needs a question and there is none, or not one per image.
        """
        if not isinstance(images, Tensor):
            check_images(images)
            return [tokens.unsqueeze(0) for tokens in self.select(torch.stack(list(images)), texts).split()]
        return self.select(images, texts).stacked()

    @torch.no_grad()
    def select(self, images: Tensor, texts: Sequence[ImageText] | str | None = None) -> VisualTokens:
        """See (B, 3, height, width) images and keep what matters for their questions; see `forward`."""
        patches, signals = self.look(images, signals_of([self.token_reduction]))
        return self.reduce(patches, images, texts, signals=signals)

    def encode(self, images: Tensor) -> Tensor:
        """Return the patch features of (B, 3, height, width) pixels at the selected layer, (B, N, D).

        Raises:
            UserError: If the tower is not loaded, or these are no pixels of its size.
        """
        return self.look(images)[0]

    @torch.no_grad()
    def look(self, images: Tensor, wanted: Collection[Signal] = ()) -> tuple[Tensor, dict[Signal, Tensor]]:
        """Return the patch features (B, N, D) of pixels, and what else a reducer wants of the encoder.

        Args:
            images: (B, 3, height, width).
            wanted: Signals that are computed beside the patches, each (B, ...).

        Raises:
            UserError: As in `encode`.
        """
        self.require_loaded()
        check_pixels(images, self.config.image_size)
        images = hand_over(images, self.device, self.dtype)
        with without_autocast(self.device):
            if not wanted:
                return self._patches(self._hidden_state(images)), {}
            hidden, signals = read_signals(self.vision_tower, images, wanted)
            return self._patches(hidden), signals

    def _hidden_state(self, images: Tensor) -> Tensor:
        """Run the encoder on (B, 3, height, width) pixels, (B, 1 + N, D)."""
        if self._compiled is not None:
            return self._compiled(images)
        if self._recorded is not None and len(images) <= RECORDED_IMAGES:
            return self._recorded.vision(images)
        return self.vision_tower.selected_hidden_state(images)

    def record(self, recorder: Recorder | None) -> None:
        """Let small batches, texts and the choice of patches be replayed; None starts every kernel by itself.

        For inference: no module's hook runs in a replay. `clear_recordings` when weights have been replaced.
        """
        self._recorded = None
        if recorder is None:
            return
        self._recorded = _Recorded(
            vision=Recordings(recorder, self.vision_tower.selected_hidden_state),
            choice=Recordings(recorder, self._choose),
            text=Recordings(recorder, self._project_ids),
        )

    def _embed_ids(self, ids: Tensor) -> Tensor:
        """Project the ids of one text on the host (1, L) into CLIP's joint space, (1, E)."""
        if self._recorded is not None:
            return self._recorded.text(ids)
        return self._project_ids(hand_over(ids, self.device))

    def _project_ids(self, ids: Tensor) -> Tensor:
        assert self.text_tower is not None
        return self.text_tower(ids).text_embeds

    def clear_recordings(self) -> None:
        """Forget what was recorded with weights that are somewhere else now."""
        if self._recorded is not None:
            for recordings in (self._recorded.vision, self._recorded.choice, self._recorded.text):
                recordings.forget()

    def compile_encoder(self) -> None:
        """Let ``torch.compile`` fuse the vision encoder's operations; its rounding is another then.

        It works when the first image is seen, for up to a minute, and once more for the first batch.

        Raises:
            UserError: If the tower is not loaded, or what compiles is not installed.
        """
        self.require_loaded()
        if self.device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
            raise UserError(
                f"compiling for a CPU needs a C++ compiler; install one of {', '.join(COMPILERS)}"
            )
        if self.device.type == "cuda" and find_spec("triton") is None:
            raise UserError("compiling for CUDA needs triton: pip install triton")
        self._compiled = torch.compile(self.vision_tower.selected_hidden_state)

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is compiled or recorded to the original: it computes with the original's weights."""
        return {**super().__getstate__(), "_compiled": None, "_recorded": None}

    def feature_select(self, image_forward_outs: Any) -> Tensor:
        """Take the patch features (B, N, D) from what ``vision_tower(…, output_hidden_states=True)`` gave."""
        return self._patches(image_forward_outs.hidden_states[self.select_layer])

    def _patches(self, hidden_state: Tensor) -> Tensor:
        """Leave CLS out of a hidden state (B, 1 + N, D), unless ``select_feature`` keeps it."""
        return hidden_state if self.select_feature == "cls_patch" else hidden_state[:, 1:]

    @torch.no_grad()
    def reduce(
        self,
        patches: Tensor,
        images: Tensor,
        texts: Sequence[ImageText] | str | None,
        reducer: Reducer | None = None,
        *,
        signals: Mapping[Signal, Tensor] | None = None,
        around: Sequence[Surroundings] | None = None,
    ) -> VisualTokens:
        """Reduce (B, N, D) patches by the tower's reducer or by another.

        Args:
            patches: From `look`.
            images: What was seen, (B, 3, height, width).
            texts: As in `forward`.
            reducer: Instead of the tower's.
            signals: From `look`, those that the reducer reads.
            around: What is known of each image that the tower does not see.
        """
        if reducer is None:
            reducer = self.token_reduction
        if isinstance(reducer, Method):
            with without_autocast(self.device):  # its products decide which patches stay
                return reducer(self._inputs(reducer, patches, images, texts, signals or {}, around))
        if self._recorded is not None and isinstance(reducer, Trim) and len(patches) <= RECORDED_CHOICES:
            questions = self._questions(patches, texts)
            return pack_tokens(*self._recorded.choice(patches, questions, reducer=reducer))
        relevance = partial(self._relevance, patches, texts)
        return reducer(ReducerInputs(patches, images, relevance))

    def _inputs(
        self,
        reducer: Method,
        patches: Tensor,
        images: Tensor,
        texts: Sequence[ImageText] | str | None,
        signals: Mapping[Signal, Tensor],
        around: Sequence[Surroundings] | None,
    ) -> ReducerInputs:
        """Put together what a published method looks at, image by image: (B, N, D) patches.

        Raises:
            UserError: If it reads signals that are not there.
        """
        for signal in reducer.reads - signals.keys():
            raise UserError(
                f"this token reduction reads {signal.value}, which was not asked for when the images were "
                "seen; pass wanted=signals_of([reducer]) to look, and what it gives as signals="
            )
        questions: Sequence[ImageText | None] = [None] * len(patches)
        if texts is not None:
            questions = _one_question_per_image(texts, len(patches))
        rows = [
            TowerImage(self, own, {name: one[row] for name, one in signals.items()}, question, surroundings)
            for row, (own, question, surroundings) in enumerate(
                zip(patches, questions, around or [ALONE] * len(patches), strict=True)
            )
        ]
        return ReducerInputs(patches, images, partial(self._relevance, patches, texts), rows)

    def look_ahead(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layer behind the selected one makes of hidden states (1 + N, D), CLS first.

        Returns:
            Attention of CLS to the patches as a single head, (N,), and the patches' keys, (N, D).

        Raises:
            UserError: If there is no such layer.
        """
        query, keys = self._load_next_layer()(hidden)
        return cls_attention(query, keys, heads=1), keys[1:].float()

    def _load_next_layer(self) -> NextLayer:
        """Return parts of the layer behind the selected one, loaded by the first that asks for them.

        Raises:
            UserError: If there is no such layer.
        """
        with TEXT_LOCK, torch.inference_mode(False):
            if not self._next_layer:
                layer = load_next_layer(self.vision_tower.config, self.folder)
                self._next_layer.append(layer.to(device=self.device, dtype=self.dtype))
            return self._next_layer[0]

    def join(self, patches: Tensor) -> Tensor:
        """Project patches (N, D) into CLIP's joint space, float32 (N, E)."""
        weight = self.vision_tower.visual_projection.weight.float()
        with without_autocast(self.device):
            return self._normed(patches) @ weight.T

    def _normed(self, patches: Tensor) -> Tensor:
        """Run CLIP's ``post_layernorm`` on patches (..., D), in float32."""
        norm = self.vision_tower.vision_model.post_layernorm
        weight, bias = norm.weight.float(), norm.bias.float()
        return F.layer_norm(patches.float(), norm.normalized_shape, weight, bias, norm.eps)

    def _choose(self, patches: Tensor, questions: Tensor, *, reducer: Trim) -> tuple[Tensor, Tensor, Tensor]:
        """Do what TRIM does to (B, N, D) patches before the host learns of it; see `pack_tokens`."""
        keep = reducer.budget.mask(patch_relevance(self.score_patches(patches, questions)))
        return *order_and_merge(patches, keep), keep

    def _questions(self, patches: Tensor, texts: Sequence[ImageText] | str | None) -> Tensor:
        """Project the questions about (B, N, D) patches, (B, E)."""
        return self.encode_texts(_one_question_per_image(texts, len(patches)))

    def _relevance(self, patches: Tensor, texts: Sequence[ImageText] | str | None) -> Tensor:
        """Relevance of (B, N, D) patches to the questions, (B, N)."""
        return patch_relevance(self.score_patches(patches, self._questions(patches, texts)))

    def score_patches(self, patches: Tensor, questions: Tensor) -> Tensor:
        """Score patches (B, N, D) against projected questions (B, E), (B, N); see `patch_scores`."""
        projection = self.vision_tower.visual_projection.weight.float()
        with without_autocast(self.device):
            return patch_scores(self._normed(patches), questions, projection)

    @torch.no_grad()
    def encode_texts(self, questions: Sequence[ImageText]) -> Tensor:
        """Project questions into CLIP's joint space, (B, E): per image its text, or the mean of its texts.

        Every distinct text is encoded by itself and without padding, so that no answer depends on its
        neighbors.
        """
        return self.load_text_encoder()(questions)

    def clear_text_cache(self) -> None:
        """Forget the embeddings of texts, because the weights that made them have changed."""
        if self._text_encoder is not None:
            self._text_encoder.clear_cache()

    def _apply(self, *args: Any, **kwargs: Any) -> CLIPVisionTower:
        """Move or convert the weights, as ``.to()`` does."""
        self.clear_text_cache()
        self.clear_recordings()
        self._next_layer.clear()
        return super()._apply(*args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.vision_tower.visual_projection.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vision_tower.visual_projection.weight.device

    @property
    def config(self) -> CLIPVisionConfig:
        """CLIP's vision config, read from its folder if the tower is not loaded."""
        if self.is_loaded:
            return self.vision_tower.config
        return read_clip_configs(self._find_folder(None))[0]

    @property
    def dummy_feature(self) -> Tensor:
        """One zero feature, (1, D)."""
        return torch.zeros(1, self.hidden_size, device=self.device, dtype=self.dtype)

    @property
    def hidden_size(self) -> int:
        """Width D of a patch feature."""
        return self.config.hidden_size

    @property
    def num_patches_per_side(self) -> int:
        """Patches along one side of the image."""
        return self.config.image_size // self.config.patch_size

    @property
    def num_patches(self) -> int:
        """Patches N of one image, before any reduction and without CLS."""
        return self.num_patches_per_side**2


def _one_question_per_image(texts: Sequence[ImageText] | str | None, images: int) -> list[ImageText]:
    """Match questions with images.

    Raises:
        UserError: If there is no question, or their number is neither 1 nor that of the images.
    """
    if texts is None:
        raise UserError(
            "the token reduction reads the question, and none was given: pass texts=, the question of each "
            "image; generate and forward read it from input_ids where the model has a tokenizer"
        )
    check_texts(texts)
    questions: list[ImageText] = [texts] if isinstance(texts, str) else list(texts)
    if len(questions) == 1:
        return questions * images
    if len(questions) != images:
        raise UserError(f"{len(questions)} questions for {images} images; give one per image, or one for all")
    return questions
