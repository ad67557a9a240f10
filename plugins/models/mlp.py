"""Networks of linear layers alone, as the papers on low precision train them on MNIST."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Sequential):
    """Hidden layers of the given sizes, each linear, perhaps BatchNorm, ReLU, perhaps dropout; then a linear layer.

    [n, channels, height, width], flattened -> [n, outputs]. batch_norm: after every linear layer, which then has no
    bias; after the last one too, as BinaryConnect's and BinaryNet's networks have it (Courbariaux et al. 2015, 2016).
    dropout: after every ReLU; input_dropout: of the pixels. init: "he", normal with variance 2 / fan-in (He et al.
    2015), 1 / fan-in for the last layer, behind which no ReLU is; "normal", with standard deviation ``init_std``, as in
    Gupta et al. 2015. Biases start at 0.
    """

    def __init__(
        self,
        inputs: tuple[int, int, int],
        outputs: int,
        hidden: Sequence[int] = (256, 256),
        batch_norm: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        init: str = "he",
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        if input_dropout:
            self.dropout0 = nn.Dropout(input_dropout)
        sizes = [inputs[0] * inputs[1] * inputs[2], *hidden, outputs]
        for number in range(1, len(sizes)):
            before, size = sizes[number - 1 : number + 1]
            linear, last = nn.Linear(before, size, bias=not batch_norm), number == len(sizes) - 1
            nn.init.normal_(linear.weight, 0, ((1 if last else 2) / before) ** 0.5 if init == "he" else init_std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
            self.add_module(f"fc{number}", linear)
            if batch_norm:
                self.add_module(f"bn{number}", nn.BatchNorm1d(size))
            if not last:
                self.add_module(f"relu{number}", nn.ReLU())
                if dropout:
                    self.add_module(f"dropout{number}", nn.Dropout(dropout))

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores."""
        return super().forward(images)
