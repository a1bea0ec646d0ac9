"""Key layouts of published weights, and the names of their tensors in our models.

A layout is a table of names. `{s}` is the stage, counted from `first`; `{j}` the block; `{n}` any other number; `*` the
tensor's own name. A name that maps to None is accepted and dropped, because nothing uses it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

BLOCK = "stages.{s}.blocks.{j}."
CELL = "stages.{s}.downsample."


@dataclass(frozen=True)
class Layout:
    """How one codebase names the tensors of one family.

    Attributes:
        name: Owner and family of the layout, for messages.
        family: Name of the module in `models`.
        table: From their names to ours.
        first: Number of the first stage.
        prefix: Prefix of either all names or none.
        linear: Whether their linear layers are 1x1 convolutions in our models.
    """

    name: str
    family: str
    table: Mapping[str, str | None]
    first: int = 0
    prefix: str = ""
    linear: bool = False

    @cached_property
    def _rules(self) -> list[tuple[re.Pattern[str], str | None]]:
        return [(_pattern(theirs), ours) for theirs, ours in self.table.items()]

    def rename(self, key: str) -> tuple[bool, str | None]:
        """Whether the layout knows a name, and our name for it; None if it is dropped."""
        for pattern, ours in self._rules:
            match = pattern.fullmatch(key.removeprefix(self.prefix))
            if match:
                parts = match.groupdict()
                if "s" in parts:
                    parts["s"] = str(int(parts["s"]) - self.first)
                return True, None if ours is None else ours.replace("*", "{tensor}").format(**parts)
        return False, None

    def apply(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """The tensors under our names, and the names unknown to the layout."""
        renamed, unknown = {}, []
        for key, tensor in state.items():
            known, name = self.rename(key)
            if not known:
                unknown.append(key)
            elif name is not None:
                if self.linear and tensor.ndim == 2 and name.startswith("stages."):
                    tensor = tensor[:, :, None, None]
                renamed[name] = tensor
        return renamed, unknown


def _pattern(theirs: str) -> re.Pattern[str]:
    text = re.escape(theirs).replace(r"\*", r"(?P<tensor>[a-z_]+)")
    return re.compile(re.sub(r"\\{([sjn])\\}", r"(?P<\1>\\d+)", text))


_VAN_BLOCK = {
    "{s}.{j}.norm{n}.*": BLOCK + "norm{n}.*",
    "{s}.{j}.layer_scale_{n}": BLOCK + "scale{n}.gamma",
    "{s}.{j}.attn.proj_{n}.*": BLOCK + "mixer.proj{n}.*",
    "{s}.{j}.attn.spatial_gating_unit.conv1.*": BLOCK + "mixer.kernel.point.*",
    "{s}.{j}.mlp.fc{n}.*": BLOCK + "mlp.fc{n}.*",
}

VAN = Layout(
    "the authors' VAN",
    "van",
    {
        "patch_embed{s}.proj.*": CELL + "0.*",
        "patch_embed{s}.norm.*": CELL + "1.*",
        **{"block" + theirs: ours for theirs, ours in _VAN_BLOCK.items()},
        "block{s}.{j}.attn.spatial_gating_unit.conv0.*": BLOCK + "mixer.kernel.local.*",
        "block{s}.{j}.attn.spatial_gating_unit.conv_spatial.*": BLOCK + "mixer.kernel.dilated.*",
        "block{s}.{j}.mlp.dwconv.dwconv.*": BLOCK + "mlp.conv.*",
        "norm{s}.*": "stages.{s}.norm.*",
        "head.*": "head.fc.*",
    },
    first=1,
)

VAN_OPENMMLAB = Layout(
    "OpenMMLab's VAN",
    "van",
    {
        "patch_embed{s}.projection.*": CELL + "0.*",
        "patch_embed{s}.norm.*": CELL + "1.*",
        **{"blocks" + theirs: ours for theirs, ours in _VAN_BLOCK.items()},
        "blocks{s}.{j}.attn.spatial_gating_unit.DW_conv.*": BLOCK + "mixer.kernel.local.*",
        "blocks{s}.{j}.attn.spatial_gating_unit.DW_D_conv.*": BLOCK + "mixer.kernel.dilated.*",
        "blocks{s}.{j}.mlp.dwconv.*": BLOCK + "mlp.conv.*",
        "norm{s}.*": "stages.{s}.norm.*",
        "head.fc.*": "head.fc.*",
    },
    first=1,
    prefix="backbone.",
)

_HF_BLOCK = "encoder.stages.{s}.layers.{j}."
VAN_TRANSFORMERS = Layout(
    "Hugging Face's VAN",
    "van",
    {
        "encoder.stages.{s}.embeddings.convolution.*": CELL + "0.*",
        "encoder.stages.{s}.embeddings.normalization.*": CELL + "1.*",
        _HF_BLOCK + "pre_normomalization.*": BLOCK + "norm1.*",
        _HF_BLOCK + "attention.pre_projection.conv.*": BLOCK + "mixer.proj1.*",
        _HF_BLOCK + "attention.attention_layer.attention.depth_wise.*": BLOCK + "mixer.kernel.local.*",
        _HF_BLOCK + "attention.attention_layer.attention.depth_wise_dilated.*": BLOCK + "mixer.kernel.dilated.*",
        _HF_BLOCK + "attention.attention_layer.attention.point_wise.*": BLOCK + "mixer.kernel.point.*",
        _HF_BLOCK + "attention.post_projection.*": BLOCK + "mixer.proj2.*",
        _HF_BLOCK + "attention_scaling.weight": BLOCK + "scale1.gamma",
        _HF_BLOCK + "post_normalization.*": BLOCK + "norm2.*",
        _HF_BLOCK + "mlp.in_dense.*": BLOCK + "mlp.fc1.*",
        _HF_BLOCK + "mlp.depth_wise.*": BLOCK + "mlp.conv.*",
        _HF_BLOCK + "mlp.out_dense.*": BLOCK + "mlp.fc2.*",
        _HF_BLOCK + "mlp_scaling.weight": BLOCK + "scale2.gamma",
        "encoder.stages.{s}.normalization.*": "stages.{s}.norm.*",
        "layernorm.*": None,  # declared there, never called
        "classifier.*": "head.fc.*",
    },
    prefix="van.",
)

SMT = Layout(
    "the authors' SMT",
    "smt",
    {
        "patch_embed1.conv.{n}.*": "stages.0.downsample.{n}.*",
        "patch_embed1.norm.*": "stages.0.downsample.4.*",
        "patch_embed{s}.proj.*": CELL + "0.*",
        "patch_embed{s}.norm.*": CELL + "1.*",
        "block{s}.{j}.norm{n}.*": BLOCK + "norm{n}.*",
        "block{s}.{j}.gamma_{n}": BLOCK + "scale{n}.gamma",
        "block{s}.{j}.attn.s.*": BLOCK + "mixer.s.*",
        "block{s}.{j}.attn.v.*": BLOCK + "mixer.v.*",
        "block{s}.{j}.attn.local_conv_1.*": BLOCK + "mixer.mhmc.convs.0.*",
        "block{s}.{j}.attn.local_conv_2.*": BLOCK + "mixer.mhmc.convs.1.*",
        "block{s}.{j}.attn.local_conv_3.*": BLOCK + "mixer.mhmc.convs.2.*",
        "block{s}.{j}.attn.local_conv_4.*": BLOCK + "mixer.mhmc.convs.3.*",
        "block{s}.{j}.attn.proj{n}.*": BLOCK + "mixer.saa.proj{n}.*",
        "block{s}.{j}.attn.bn.*": BLOCK + "mixer.saa.norm.*",
        "block{s}.{j}.attn.proj.*": BLOCK + "mixer.proj.*",
        "block{s}.{j}.attn.q.*": BLOCK + "mixer.q.*",
        "block{s}.{j}.attn.kv.*": BLOCK + "mixer.kv.*",
        "block{s}.{j}.attn.local_conv.*": BLOCK + "mixer.value_conv.*",
        "block{s}.{j}.attn.dw_conv.*": BLOCK + "mixer.value_conv.*",
        "block{s}.{j}.mlp.fc{n}.*": BLOCK + "mlp.fc{n}.*",
        "block{s}.{j}.mlp.dwconv.dwconv.*": BLOCK + "mlp.conv.*",
        "norm{s}.*": "stages.{s}.norm.*",
        "head.*": "head.fc.*",
    },
    first=1,
    linear=True,
)

_NORMAL_CELL = {
    "norm{n}.*": "norm{n}.*",
    "attn.qkv.*": "attn.qkv.*",
    "attn.proj.*": "attn.proj.*",
    "mlp.fc{n}.*": "mlp.fc{n}.*",
    "PCM.{n}.*": "pcm.{n}.*",
}

VITAE = Layout(
    "the authors' ViTAE, sizes T to S",
    "vitae",
    {
        "layers.2.RC.PRM.convs.{n}.0.*": "stages.2.downsample.convs.{n}.*",
        "layers.{s}.RC.PRM.convs.{n}.0.*": CELL + "prm.convs.{n}.*",
        "layers.{s}.RC.PCM.{n}.*": CELL + "pcm.{n}.*",
        "layers.{s}.RC.attn.w": CELL + "attn.w",
        "layers.{s}.RC.attn.kqv.*": CELL + "attn.kqv.*",
        "layers.{s}.RC.attn.proj.*": CELL + "attn.proj.*",
        "layers.{s}.RC.attn.norm{n}.*": CELL + "norm{n}.*",
        "layers.{s}.RC.attn.mlp.0.*": CELL + "mlp.fc1.*",
        "layers.{s}.RC.attn.mlp.2.*": CELL + "mlp.fc2.*",
        **{"layers.{s}.NC.{j}." + theirs: BLOCK + ours for theirs, ours in _NORMAL_CELL.items()},
        "head.*": "head.fc.*",
    },
)

VITAE_PLAIN = Layout(
    "the authors' ViTAE, sizes B to H",
    "vitae",
    {
        "layers.0.RC.pos_embed": "stages.0.pos_embed",
        "layers.0.RC.cls_token": "stages.0.cls_token",
        "layers.0.RC.PRM.proj.*": "stages.0.downsample.*",
        **{"layers.2.NC.{j}." + theirs: "stages.0.blocks.{j}." + ours for theirs, ours in _NORMAL_CELL.items()},
        "fc_norm.*": "head.norm.*",
        "head.*": "head.fc.*",
    },
)

VITAEV2 = Layout(
    "the authors' ViTAEv2",
    "vitaev2",
    {
        "layers.{s}.RC.PRM.convs.{n}.0.*": CELL + "prm.convs.{n}.*",
        "layers.{s}.RC.PCM.{n}.*": CELL + "pcm.{n}.*",
        "layers.{s}.RC.attn.attn.qkv.*": CELL + "attn.qkv.*",
        "layers.{s}.RC.attn.attn.proj.*": CELL + "attn.proj.*",
        "layers.{s}.RC.attn.attn.relative_position_index": None,
        "layers.{s}.RC.attn.norm{n}.*": CELL + "norm{n}.*",
        "layers.{s}.RC.attn.mlp.fc{n}.*": CELL + "mlp.fc{n}.*",
        **{"layers.{s}.NC.{j}." + theirs: BLOCK + ours for theirs, ours in _NORMAL_CELL.items()},
        "layers.{s}.NC.{j}.attn.relative_position_index": None,
        "head.*": "head.fc.*",
    },
)

LAYOUTS = (VAN, VAN_OPENMMLAB, VAN_TRANSFORMERS, SMT, VITAE, VITAE_PLAIN, VITAEV2)


def recognise(state: Mapping[str, Tensor]) -> tuple[Layout, dict[str, Tensor], list[str]] | None:
    """The layout that knows most names of a state dict, the renamed tensors, and the names unknown to it.

    None if no layout knows at least half of the names and at least one name outside the classifier.
    """
    best = None
    for layout in LAYOUTS:
        renamed, unknown = layout.apply(state)
        if any(name.startswith("stages.") for name in renamed) and len(unknown) <= len(state) / 2:
            if best is None or len(unknown) < len(best[2]):
                best = layout, renamed, unknown
    return best
