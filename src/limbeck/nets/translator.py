"""Factor transfer's networks: what puts features into the teacher's words, and what puts the student's into them."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Paraphraser(nn.Module):
    """A convolutional autoencoder of a teacher's features; what its encoder gives are the factors.

    Encoder: three 3x3 convolutions, m → m → mk → mk. Decoder: three transposed ones, mk → mk → m → m. A leaky ReLU of slope
    0.1 follows each, the last too; no batch norm, as in the authors' code.

    Args:
        channels: m.
        factors: mk.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = translator(channels, factors)
        decoder = [
            nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.1))
            for inputs, outputs in pairwise((factors, factors, channels, channels))
        ]
        self.decoder = nn.Sequential(*decoder)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features, (N, m, H, W), as they come back from the factors."""
        restored: Tensor = self.decoder(self.encoder(features))
        return restored


def translator(channels: int, factors: int) -> nn.Sequential:
    """Return three 3x3 convolutions, ``channels`` → ``channels`` → ``factors`` → ``factors``, each with a leaky ReLU."""
    steps = [
        nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.LeakyReLU(0.1))
        for inputs, outputs in pairwise((channels, channels, factors, factors))
    ]
    return nn.Sequential(*steps)
