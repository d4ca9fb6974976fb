"""torch.compile for the forward pass and loss of any variant, and with them its backward pass."""

import torch
from torch import Tensor, nn

from distae import distributed as dist
from distae.config.weights import Ramp
from distae.errors import TrainingError
from distae.models import Autoencoder, Batch, Output
from distae.noise import Draw, Noise, NoiseRecorder, NoiseReplay, replay


class Compiled(nn.Module):
    """A model whose forward is compiled. Noise and scheduled weights are computed outside the graph.

    The first forward of a phase runs eagerly and records which noise it draws; later ones replay it. With one process the graph
    is whole; if ranks exchange values inside a forward (batch norm, gathered estimators), it breaks there.
    """

    def __init__(self, model: Autoencoder, cuda_graphs: bool) -> None:
        super().__init__()
        self.model = model
        self.plans: dict[str, list[Draw]] = {}
        self.ramps: list[Ramp] = [value for value in vars(model.cfg).values() if isinstance(value, Ramp)]
        torch.compiler.reset()  # earlier models of this process count against dynamo's limit of 8 programs
        mode = "reduce-overhead" if cuda_graphs else None
        self.program = torch.compile(self._run, fullgraph=dist.world().world_size == 1, mode=mode, dynamic=False)

    def forward(self, batch: Batch, phase: str, noise: Noise) -> Output:
        """The model's forward. Raises TrainingError if it does not compile."""
        if phase not in self.plans:
            recorder = NoiseRecorder(noise)
            out: Output = self.model(batch, phase, recorder)
            self.plans[phase] = recorder.plan
            return out
        ramps: dict[str, Tensor] = {ramp: batch.x.new_full((), ramp.at(batch.step)) for ramp in self.ramps}
        try:
            return self.program(batch._replace(step=None, ramps=ramps), phase, replay(noise, self.plans[phase]))
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            first = str(error).strip().splitlines()[0]
            raise TrainingError(f"--compile: {self.model.cfg.name} does not compile ({first}); leave --compile out") from error

    def _run(self, batch: Batch, phase: str, given: list[Tensor]) -> Output:
        return self.model(batch, phase, NoiseReplay(given))  # type: ignore[no-any-return]


def no_compiler(device: torch.device) -> str | None:
    """Why torch.compile does not work here, in one line; None if it does. Tested on a small function."""
    try:
        torch.compile(lambda x: x * x + 1)(torch.ones(8, device=device))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
