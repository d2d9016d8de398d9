"""A method: what is trained, and which terms are added to a task's own losses."""

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from pela_vl.base.errors import UserError
from pela_vl.lowrank import low_rank_layers
from pela_vl.models.precision import WeightCasts
from pela_vl.recovery.features import Features
from pela_vl.recovery.teacher import FrozenTeacher, Model
from pela_vl.settings import Settings


class Method:
    """The simplest method, called "full": the loaded model is trained on the task's losses alone. Subclasses change what they need.

    Class attributes:
        needs_teacher: Whether a frozen copy of the dense model is made before anything is changed.
        needs_features: Whether the training step returns the hidden states that distillation pairs.
        teacher_under_autocast: Whether the teacher computes under autocast alone, so that its weights may be kept in that type.

    Attributes:
        trained: A module of the method's own, or None. It is optimised and resumed with the model, but no checkpoint of the
            model holds it.
    """

    needs_teacher: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    teacher_under_autocast: ClassVar[bool] = False
    trained: nn.Module | None = None

    @classmethod
    def restructure(cls, model: nn.Module, config: Any, settings: Settings) -> Any:
        """Change the loaded model in place, after the teacher was copied and before the model is compressed.

        It also works on the meta device, where only the model's cost is counted.

        Args:
            model: The loaded model.
            config: The model's config, as its checkpoint's header has it; None where only the model matters.
            settings: Of the run.

        Returns:
            The changed model's config, for its checkpoint; None if neither the parameters nor their shapes were changed.

        Raises:
            UserError: If the method does not work on this model.
        """
        return None

    @classmethod
    def create(cls, model: Any, teacher: FrozenTeacher | None, settings: Settings) -> Self:
        """The method of a run, made when the model has its final shape.

        Args:
            model: The model to train, an nn.Module; a method of one family names its class.
            teacher: The frozen dense model; None where the method needs none.
            settings: Of the run.

        Raises:
            UserError: If the method cannot train this model, or has no teacher and needs one.
        """
        return cls()

    def prepare(self, batch: Any) -> Any:
        """What `terms` needs of a batch, without gradients, before the forward pass."""
        return None

    def terms(self, features: Features, prepared: Any) -> dict[str, Tensor]:
        """Weighted loss terms beside the task's own, after the forward pass.

        Args:
            features: Hidden states of the student's forward pass, the one that the task's losses come from.
            prepared: What `prepare` returned for the batch.
        """
        return {}

    def use_casts(self, casts: WeightCasts) -> None:
        """Know the casts of the trained model's weights, whose gradients a term's own may join."""

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """What a checkpoint of the model holds."""
        return model.state_dict()


class Svd(Method):
    """Truncation only: a low-rank model trained on the task's losses, without a teacher. PELA's ablation, Table 7."""

    @classmethod
    def create(cls, model: nn.Module, teacher: FrozenTeacher | None, settings: Settings) -> Self:
        """Check that the model is low rank.

        Args:
            model: The model to train.
            teacher: Not used.
            settings: Not used.

        Raises:
            UserError: For a dense model.
        """
        if not low_rank_layers(model):
            raise UserError("method: svd trains a low-rank model, but this one is dense; set compress.kappa")
        return cls()


def require_teacher(name: str, teacher: FrozenTeacher[Model] | None) -> FrozenTeacher[Model]:
    """The teacher. Raises UserError, naming the method, if there is none."""
    if teacher is None:
        raise UserError(
            f"method: {name} needs the dense model as teacher; set init.teacher or start from a dense checkpoint"
        )
    return teacher
