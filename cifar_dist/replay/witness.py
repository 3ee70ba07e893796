"""What goes into one step and comes out of it, on all ranks together: enough to say why another run took another step."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn

from cifar_dist.inputs.batches import Batch
from cifar_dist.record.digest import digest
from cifar_dist.runtime.collectives import gather_objects
from cifar_dist.training.build import Trainer


class Witness:
    """While it is entered, looks at a trainer's next step."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.images: list[dict[str, Any]] = []  # of this rank
        self.gradient: dict[str, str] = {}

    def __enter__(self) -> "Witness":
        trainer = self.trainer
        self._of_step, self._finish = trainer.batches.of_step, trainer.reduction.finish
        self._before = self._parameters()
        trainer.batches.of_step = self._watched_batches  # type: ignore[method-assign]
        trainer.reduction.finish = self._watched_finish  # type: ignore[method-assign]
        self._hook = trainer.state.model.register_forward_hook(self._watch_outputs)
        return self

    def __exit__(self, *error: object) -> None:
        del self.trainer.batches.of_step, self.trainer.reduction.finish
        self._hook.remove()

    def _watched_batches(self, step: int) -> Iterator[Batch]:
        for i, batch in enumerate(self._of_step(step)):
            for position, image in zip(batch.positions.tolist(), batch.images, strict=True):
                seen = {"position": position, "pixels": digest([("", image)]), "together": len(batch.images)}
                self.images.append({**seen, "rank": self.trainer.rank, "micro_batch": i})
            yield batch

    def _watch_outputs(self, model: nn.Module, inputs: Any, outputs: Tensor) -> None:
        for seen, row in zip(self.images[len(self.images) - len(outputs) :], outputs, strict=True):
            seen["outputs"] = digest([("", row)])

    def _watched_finish(self, step: int) -> None:
        self._finish(step)
        named = self.trainer.state.model.named_parameters()
        self.gradient = {name: digest([("", p.grad)]) for name, p in named if p.grad is not None}

    def _parameters(self) -> dict[str, str]:
        return {name: digest([("", tensor)]) for name, tensor in self.trainer.state.model.state_dict().items()}

    def testimony(self) -> dict[str, Any]:
        """Return what was seen: images in order of position, and digests of what each tensor was before and after. Collective."""
        images = sorted(chain.from_iterable(gather_objects(self.images)), key=lambda image: image["position"])
        return {"images": images, "before": self._before, "gradient": self.gradient, "after": self._parameters()}
