"""Gradients of a whole batch from forwards of its parts, for a loss that cannot be split up."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dataset.messages import ChoiceError
from models.batchnorm import frozen_statistics


def check_parts(images: int, parts: int) -> None:
    """Raises ChoiceError where a process's ``images`` do not divide into ``parts``."""
    if images % parts:
        raise ChoiceError(f"a process has {images} images, they do not divide into train.iter_size={parts} parts")


class PartwiseForward:
    """Forward of a batch in parts that keeps nothing but the outputs; ``backward`` runs every part once more.

    The curriculum's means and class histograms are of the whole batch, so the mean of the parts' gradients would be
    another method. The loss sees the outputs of all parts at once; its gradient by them then goes back through one
    part after the other. Only batch norm differs from a forward of the whole: it sees the statistics of a part.

    Args:
        forward: images -> named outputs of the same batch size.
        parts: number of parts, at most the batch size.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., dict[str, Tensor]], parts: int) -> None:
        self.model, self.forward, self.parts = model, forward, parts

    def __call__(self, images: Tensor, **options: bool) -> dict[str, Tensor]:
        check_parts(len(images), self.parts)
        self.chunks, self.options = images.chunk(self.parts), options
        self.seeds = torch.randint(2**62, (self.parts,)).tolist()  # dropout must be the same in both forwards
        with torch.no_grad():
            outputs = [self._part(index) for index in range(self.parts)]
        self.outputs = {name: torch.cat([part[name] for part in outputs]) for name in outputs[0]}
        if torch.is_grad_enabled():
            self.outputs = {name: output.requires_grad_() for name, output in self.outputs.items()}
        return self.outputs

    def _part(self, index: int) -> dict[str, Tensor]:
        torch.manual_seed(self.seeds[index])
        return self.forward(self.chunks[index], **self.options)

    def backward(self) -> None:
        """Accumulate the parameters' gradients from those of the outputs."""
        reached = {name: output.grad for name, output in self.outputs.items() if output.grad is not None}
        grads = {name: grad.chunk(self.parts) for name, grad in reached.items()}
        with frozen_statistics(self.model):  # these forwards are no further batches
            for index in range(self.parts):
                outputs = self._part(index)
                torch.autograd.backward([outputs[name] for name in grads], [grad[index] for grad in grads.values()])
