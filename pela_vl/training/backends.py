"""What runs a step's forward, backward and update: this process alone, or DeepSpeed under a launcher.

Both offer the same calls. Optimiser state leaves and enters them whole and by parameter name. So a run may be resumed with
another number of processes or another ZeRO stage.
"""

import math
import os
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pela_vl.base.distributed import World, broadcast_from_main, sum_over_processes
from pela_vl.base.errors import UserError
from pela_vl.settings import DeepSpeedSettings
from pela_vl.training.optim import set_lr

OptimiserState = dict[str, dict[str, Tensor]]
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Backend(Protocol):
    """What the loop needs of a back end.

    forward(batch, prepared) gives a StepOutput. backward(loss) adds to the gradients. step(lr) comes after every backward; it
    updates at the last of an accumulation and returns the gradients' norm then, and None before.

    An update whose gradient norm is not finite is not applied: weights and moments stay as they are. A trained parameter may have
    no gradient, because its term is off. The local back end and ZeRO 0 leave it alone, as torch's optimisers do. ZeRO 1 and 2
    take its gradient as zero, so weight decay shrinks it.
    """

    def forward(self, *args: Any) -> Any: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, lr: float) -> float | None: ...
    def optimiser_state(self) -> OptimiserState: ...
    def load_optimiser_state(self, state: OptimiserState) -> None: ...
    def destroy(self) -> None: ...


class AutocastModule(nn.Module):
    """Runs a module under autocast. Weights and optimiser stay fp32, so bf16 means the same in every backend."""

    def __init__(self, module: nn.Module, autocast: Callable[[], Any]):
        super().__init__()
        self.module = module
        self.autocast = autocast

    def forward(self, *args: Any) -> Any:
        with self.autocast():
            return self.module(*args)


class LocalBackend:
    """One process, torch's optimiser."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        accumulation: int,
        clip: float,
        autocast: Callable[[], Any],
    ):
        """Wrap a module and its optimiser.

        Args:
            module: What is run.
            optimizer: Over the module's trained parameters, its groups with `names` (see `parameter_groups`).
            accumulation: Backward passes that an update averages over.
            clip: Largest gradient norm; 0 for no limit.
            autocast: Gives the context that forward passes run in.
        """
        self.module = AutocastModule(module, autocast)
        self.optimizer, self.accumulation, self.clip = optimizer, accumulation, clip
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._backwards = 0

    def forward(self, *args: Any) -> Any:
        return self.module(*args)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()
        self._backwards += 1

    def step(self, lr: float) -> float | None:
        if self._backwards < self.accumulation:
            return None
        self._backwards = 0
        norm = _clip(self._parameters, self.clip)
        set_lr(self.optimizer, lr)
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def optimiser_state(self) -> OptimiserState:
        return _read_state(self.optimizer)

    def load_optimiser_state(self, state: OptimiserState) -> None:
        _write_state(self.optimizer, state)

    def destroy(self) -> None:
        pass


class DeepSpeedBackend:
    """DeepSpeed's engine, ZeRO stage 0 to 2. Every configuration key relied upon is written out."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        accumulation: int,
        clip: float,
        autocast: Callable[[], Any],
        batch_size: int,
        settings: DeepSpeedSettings,
        world: World,
    ):
        """The arguments are those of `LocalBackend`, and more.

        Args:
            module: What is run.
            optimizer: Over the module's trained parameters.
            accumulation: Backward passes that an update averages over.
            clip: Largest gradient norm, 0 for none.
            autocast: Gives the context that forward passes run in.
            batch_size: Samples a process and backward pass.
            settings: Of the run's configuration.
            world: This process and the others.
        """
        stage = settings.stage
        if stage not in (0, 1, 2):
            raise UserError(f"deepspeed.stage is {stage}: feature distillation and weight perturbation read whole "
                            "weights, so choose 0, 1 or 2")  # fmt: skip
        # without this variable DeepSpeed asks for a CUDA compiler at import
        if world.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        if world.device.type == "cpu":
            # compiling this shared-memory collective takes minutes, and it is no faster than gloo here
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.accumulation, self.clip, self.stage = accumulation, clip, stage
        self._names = {id(p): n for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)}
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        self.base: Any = optimizer
        overlap = world.device.type == "cuda" if settings.overlap is None else settings.overlap
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_accumulation_steps": accumulation,
            # without ZeRO, DeepSpeed reports no norm and fails at a 0-d gradient; then `step` clips
            "gradient_clipping": clip if stage else 0.0,
            "zero_optimization": {
                "stage": stage,
                "overlap_comm": overlap,
                "contiguous_gradients": True,
                "reduce_bucket_size": settings.reduce_bucket,
                "allgather_bucket_size": settings.allgather_bucket,
            },
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": False},
            "fp16": {"enabled": False},
            "prescale_gradients": False,
            "gradient_predivide_factor": 1.0,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }
        config = _laid_over(config, settings.extra)
        # DeepSpeed 0.19 broadcasts weights as bytes, which fails for a 0-d parameter (ALBEF's temperature). So 0-d parameters
        # are broadcast here. `ds_optim_param` is DeepSpeed's mark for what it must not broadcast itself.
        scalars: list[Any] = [p for p in module.parameters() if p.ndim == 0]
        for parameter in scalars:
            broadcast_from_main(parameter.data)
            parameter.ds_optim_param = True
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=AutocastModule(module, autocast), optimizer=optimizer, config=config
        )
        for parameter in scalars:
            del parameter.ds_optim_param
        if stage:
            _check_private_names(self.optimizer, deepspeed.__version__)

    def forward(self, *args: Any) -> Any:
        return self.engine(*args)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, lr: float) -> float | None:
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()
            return None
        set_lr(self.optimizer, lr)
        if self.stage == 0:
            # the gradients are whole and averaged by now
            norm = _clip([parameter for group in self._groups for parameter in group], self.clip)
            if math.isfinite(norm):
                self.engine.step()
            return norm
        self._take_weights()
        self.engine.step()  # ZeRO skips an update whose gradient is not finite, without a message
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def _take_weights(self) -> None:
        """Copy the model's weights into ZeRO's own copies.

        ZeRO updates its copies. Without this, the next update would undo what was changed in place:
        a loaded checkpoint, the clamped temperature.
        """
        self.optimizer.refresh_fp32_params()

    def optimiser_state(self) -> OptimiserState:
        """The whole optimiser state by parameter name, gathered from all processes.

        This is a collective operation: every process calls it and gets the whole. ZeRO keeps the moments of a group of
        parameters in one flat vector, of which each process holds a part.
        """
        if self.stage == 0:
            return _read_state(self.base)
        state: OptimiserState = {}
        for group, parameters in enumerate(self._groups):
            flat = self.optimizer.single_partition_of_fp32_groups[group]
            held = self.base.state.get(flat, {})
            steps = sum_over_processes(
                torch.tensor([float(held["step"]) if "step" in held else -1.0], device=flat.device)
            )
            if steps.item() < 0:
                continue
            for parameter in parameters:
                entry = {"step": torch.tensor(float(held["step"]))}
                for key in _MOMENTS:
                    whole = torch.zeros(parameter.numel(), device=flat.device)
                    here = self._fragment(parameter)
                    if here is not None:
                        (lp_start, hp_start, count) = here
                        whole[lp_start : lp_start + count] = held[key][hp_start : hp_start + count]
                    entry[key] = sum_over_processes(whole).view(parameter.shape).cpu()
                state[self._names[id(parameter)]] = entry
        return state

    def load_optimiser_state(self, state: OptimiserState) -> None:
        if self.stage == 0:
            _write_state(self.base, state)
            return
        for group, parameters in enumerate(self._groups):
            flat = self.optimizer.single_partition_of_fp32_groups[group]
            held = {key: torch.zeros_like(flat) for key in _MOMENTS}
            for parameter in parameters:
                saved = state.get(self._names[id(parameter)])
                if saved is None:
                    continue
                # one step count serves the whole group: the highest, since a parameter that was idle has a lower one
                held["step"] = torch.maximum(saved["step"], held.get("step", saved["step"]))
                here = self._fragment(parameter)
                if here is not None:
                    (lp_start, hp_start, count) = here
                    for key in _MOMENTS:
                        held[key][hp_start : hp_start + count] = saved[key].flatten()[lp_start : lp_start + count]
            if "step" in held:
                self.base.state[flat] = held

    def _fragment(self, parameter: nn.Parameter) -> tuple[int, int, int] | None:
        """The part of a parameter that this process holds: its start in the parameter, its start in the flat vector, its length."""
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            return None
        part, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
        return part.start, flat.start, part.numel

    def destroy(self) -> None:
        self.engine.destroy()
        self.engine = self.optimizer = self.base = None


def _laid_over(config: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """A configuration with further keys laid over it, section by section."""
    merged = dict(config)
    for key, value in extra.items():
        below = merged.get(key)
        merged[key] = _laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _check_private_names(optimizer: Any, version: str) -> None:
    """Raises UserError if ZeRO's optimiser lacks what this file reads of it and DeepSpeed does not promise to keep."""
    parameters = [parameter for group in optimizer.bit16_groups for parameter in group]
    names = [
        name for name in ("single_partition_of_fp32_groups", "refresh_fp32_params") if not hasattr(optimizer, name)
    ]
    names += [] if all(hasattr(parameter, "_hp_mapping") for parameter in parameters) else ["_hp_mapping"]
    if names:
        raise UserError(f"DeepSpeed {version} has no {', '.join(names)}; install 'deepspeed>=0.19,<0.20'")


def _clip(parameters: list[nn.Parameter], limit: float) -> float:
    """Scale gradients to a norm of at most `limit` (0: any); the norm before."""
    return float(nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf")))


def _read_state(optimizer: torch.optim.Optimizer) -> OptimiserState:
    state = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if parameter in optimizer.state:
                state[name] = {key: value.cpu() for key, value in optimizer.state[parameter].items()}
    return state


def _write_state(optimizer: torch.optim.Optimizer, state: OptimiserState) -> None:
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name in state:
                optimizer.state[parameter] = {
                    key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                    for key, value in state[name].items()
                }
