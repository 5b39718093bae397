"""Training: settings, loop, checkpoints, records."""

from glm_ext.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from glm_ext.train.config import DataConfig, ModelConfig, ObjectivesConfig, OptimConfig, TrainConfig
from glm_ext.train.load import LoadedModel, load_model
from glm_ext.train.log import RunLog, StepRecord
from glm_ext.train.plot import plot_loss
from glm_ext.train.settings import ConfigError
from glm_ext.train.trainer import Diverged, Trainer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "DataConfig",
    "Diverged",
    "LoadedModel",
    "ModelConfig",
    "ObjectivesConfig",
    "OptimConfig",
    "RunLog",
    "StepRecord",
    "TrainConfig",
    "Trainer",
    "load_checkpoint",
    "load_model",
    "plot_loss",
    "save_checkpoint",
]
