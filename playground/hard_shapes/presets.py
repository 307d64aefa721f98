"""How large everything is, per preset."""

from playground.shapes.presets import PRESETS, Preset

HARD_PRESETS = {  # as `build.sh` calls them
    "full": Preset(
        pictures=40_000,
        clip_width=160,
        clip_layers=5,
        clip_steps=(6_000, 160),
        clip_batch=32,
        llama_width=192,
        llama_layers=5,
        text_steps=2_000,
        text_batch=24,
        stage1_samples=6_400,
        stage2_samples=24_000,
        stage2_batch=32,
    ),
    "full-smoke": PRESETS["smoke"],
}
