"""What crosses from the host to a device without the host waiting for it.

A plain copy to a GPU waits until all that was asked of the GPU before is done, so one drawn warp a step would leave no step prepared ahead.
The source of a copy without waiting must not change before it is read. These arrays lie in pageable memory, which the driver stages before
the call returns, and nothing writes to them afterwards.
"""

import numpy as np
import torch


def sent(x: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor on the device."""
    return torch.from_numpy(x).to(device, non_blocking=True)
