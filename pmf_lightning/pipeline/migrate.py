"""Migrate checkpoints and configurations of earlier versions: moved classes, renamed and new options."""

from collections.abc import Mapping
from typing import Any

from pmf_lightning.config.renamed import rename_options

# Old name -> new name of classes and functions.
MOVED_TARGETS = {
    "pmf_lightning.data.imagenet.ImageNet": "pmf_lightning.data.shards.source.Shards",
    "pmf_lightning.data.imagenet.ImageNetLatents": "pmf_lightning.data.shards.source.LatentShards",
    "pmf_lightning.callbacks.fid.FidSettings": "pmf_lightning.training.callbacks.fid.FidSettings",
    "pmf_lightning.data.digits.Digits": "pmf_lightning.data.sources.digits.Digits",
    "pmf_lightning.data.folder.Folder": "pmf_lightning.data.sources.folder.Folder",
    "pmf_lightning.data.shapes.Shapes": "pmf_lightning.data.sources.shapes.source.Shapes",
    "pmf_lightning.data.shards.LatentShards": "pmf_lightning.data.shards.source.LatentShards",
    "pmf_lightning.data.shards.Shards": "pmf_lightning.data.shards.source.Shards",
    "pmf_lightning.drift_features.cached_mae.MAESettings": "pmf_lightning.encoders.drifting.train_mae.MAESettings",
    "pmf_lightning.drift_features.convnext.ConvNeXtMaps": "pmf_lightning.encoders.drifting.convnext.ConvNeXtMaps",
    "pmf_lightning.drift_features.make.pixels_alone": "pmf_lightning.encoders.drifting.build.pixels_alone",
    "pmf_lightning.drift_features.make.released": "pmf_lightning.encoders.drifting.build.released",
    "pmf_lightning.drift_features.make.trained_by_run": "pmf_lightning.encoders.drifting.build.trained_by_run",
    "pmf_lightning.drift_features.make.trained_on_data": "pmf_lightning.encoders.drifting.build.trained_on_data",
    "pmf_lightning.encoders.battery.members.PixelMember": "pmf_lightning.encoders.battery.members.Pixels",
    "pmf_lightning.encoders.battery.members.classifier_member": (
        "pmf_lightning.encoders.battery.members.ClassifierMember"
    ),
    "pmf_lightning.evaluation.dinov2.DinoV2": "pmf_lightning.encoders.dinov2.DinoV2",
    "pmf_lightning.evaluation.inception.Inception": "pmf_lightning.encoders.inception.Inception",
    "pmf_lightning.evaluation.other_features.ClassifierFeatures": (
        "pmf_lightning.encoders.extractors.ClassifierFeatures"
    ),
    "pmf_lightning.evaluation.other_features.ModuleFeatures": "pmf_lightning.encoders.extractors.ModuleFeatures",
    "pmf_lightning.metrics.quality.QualitySettings": "pmf_lightning.evaluation.small_data.SmallDataSettings",
    "pmf_lightning.metrics.train_classifier.ClassifierSettings": (
        "pmf_lightning.encoders.classifier.train.ClassifierSettings"
    ),
    "pmf_lightning.optim.adam.adam": "torch.optim.Adam",
    "pmf_lightning.optim.adamw.adamw": "torch.optim.AdamW",
    "pmf_lightning.optim.optimizers.adam": "torch.optim.Adam",
    "pmf_lightning.optim.optimizers.adamw": "torch.optim.AdamW",
    "pmf_lightning.perceptual.classifier.classifier_features": (
        "pmf_lightning.encoders.perceptual.classifier.classifier_features"
    ),
    "pmf_lightning.perceptual.convnext.ConvNeXtFeatures": (
        "pmf_lightning.encoders.perceptual.convnext.ConvNeXtFeatures"
    ),
    "pmf_lightning.perceptual.lpips_vgg.LpipsVgg": "pmf_lightning.encoders.perceptual.lpips.LPIPS",
    "pmf_lightning.strategies.ddp": "pmf_lightning.distributed.strategies.ddp",
    "pmf_lightning.strategies.fsdp": "pmf_lightning.distributed.strategies.fsdp",
}
# Old -> new class name of callbacks with state in checkpoints.
RENAMED_CALLBACKS = {"LastCheckpoint": "CheckpointWriter"}
# Options missing in earlier configurations, with the values that those runs used.
ADDED_OPTIONS = {"flip": False, "decoder": None, "activation_checkpointing": False, "compile": False, "augment": None}
ADDED_OPTIONS |= {"moments": {"device": None}}
ADDED_OBJECTIVE_OPTIONS = {
    "pmf_lightning.objectives.drifting.Drifting": {"affinity_floor": 1e-6},
    "pmf_lightning.objectives.pixel_meanflow.PixelMeanFlow": {
        "omega_min": 1.0,
        "jvp_tangent": "network",
        "sample_interval": True,
    },
}
ADDED_PRECONDITIONER_OPTIONS = {"pmf_lightning.objectives.preconditioners.EDM": {"noise_scale": 1.0}}
ADDED_CONTROLLER_OPTIONS = {
    **{"proportional": 1.0, "integral": 0.0, "derivative": 0.0, "smoothing": 0.5, "relative": False, "softmax": True},
    **{"total": None, "temperature": 2.0, "error_clip": 5.0, "most": 10.0},
}
ADDED_BACKBONE_OPTIONS = {"pmf_lightning.models.jit_vit.JiTViT": {"positions": "sincos"}}


def migrate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a stored configuration (plain data) to the names and options of this version."""
    config = {**ADDED_OPTIONS, **rename_options(_with_moved_targets(config))}
    objective = config["objective"]
    objective = {**ADDED_OBJECTIVE_OPTIONS.get(objective["_target_"], {}), **objective}
    if preconditioner := objective.get("preconditioner"):
        added = ADDED_PRECONDITIONER_OPTIONS.get(preconditioner["_target_"], {})
        objective["preconditioner"] = {**added, **preconditioner}
    config["objective"] = objective
    if backbone := config.get("backbone"):
        config["backbone"] = {**ADDED_BACKBONE_OPTIONS.get(backbone["_target_"], {}), **backbone}
    if (posttrain := config.get("posttrain")) and posttrain.get("controller") is not None:
        controller = {**ADDED_CONTROLLER_OPTIONS, **posttrain["controller"]}
        config["posttrain"] = {**posttrain, "controller": controller}
    return config


def migrate_callbacks(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a checkpoint's callback states to the class names of this version."""
    callbacks = checkpoint.get("callbacks", {})
    return {**checkpoint, "callbacks": {RENAMED_CALLBACKS.get(name, name): callbacks[name] for name in callbacks}}


def _with_moved_targets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: MOVED_TARGETS.get(inner, inner)
            if key == "_target_" and isinstance(inner, str)
            else _with_moved_targets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_with_moved_targets(inner) for inner in value]
    return value
