"""What the build of models for crowded scenes is made of."""

from playground.hard_shapes.make_data import stage1_sample, stage2_sample
from playground.hard_shapes.text_pretraining import pretrain_text
from playground.hard_shapes.train_clip import HARD_WORLD, train_clip
from playground.shapes.plan import Kit

HARD_KIT = Kit(
    world=HARD_WORLD,
    train_clip=train_clip,
    pretrain_text=pretrain_text,
    stage1_sample=stage1_sample,
    stage2_sample=stage2_sample,
    clip="clip-hard-shapes",
    llava="llava-hard-shapes",
)
