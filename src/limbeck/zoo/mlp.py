"""Plain multilayer perceptrons, ``mlp-H1-H2-...``.

Distilling the Knowledge in a Neural Network. Geoffrey Hinton, Oriol Vinyals, Jeff Dean. NIPS 2014 workshop, arXiv
1503.02531, section 3: on MNIST the teacher is 784-1200-1200-10 with rectified linear units (``mlp-1200-1200``), the
student 784-800-800-10 (``mlp-800-800``).

The paper's teacher was trained with dropout as in Hinton et al., arXiv 1207.0580 (0.5 on hidden units, 0.2 on the
inputs), and weight constraints; here dropout is off unless asked for and the constraints are left to the training loop.

Places: ``layers.fc1``, ``layers.relu1``, ``layers.fc2``, ..., the last ``layers.fcL`` being the logits.

Letters: N samples, D inputs, K classes.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them; the input is flattened.

    Args:
        hidden: Widths of the hidden layers, from the first to the last.
        num_classes: K.
        in_features: D, the number of values in one sample (784 for MNIST).
        dropout: Probability for hidden units (0; Hinton's teacher 0.5).
        input_dropout: Probability for inputs (0; Hinton's teacher 0.2).
    """

    def __init__(
        self,
        hidden: Sequence[int],
        num_classes: int = 10,
        in_features: int = 784,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(f"mlp: expected positive hidden widths, got {tuple(hidden)}")
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        if input_dropout:
            layers["drop0"] = nn.Dropout(input_dropout)
        width = in_features
        for index, units in enumerate(hidden, start=1):
            layers[f"fc{index}"] = nn.Linear(width, units)
            layers[f"relu{index}"] = nn.ReLU()
            if dropout:
                layers[f"drop{index}"] = nn.Dropout(dropout)
            width = units
        layers[f"fc{len(hidden) + 1}"] = nn.Linear(width, num_classes)
        self.layers = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map samples ``(N, ...)`` of D values each to logits ``(N, K)``."""
        logits: Tensor = self.layers(x)
        return logits
