"""Number formats: where bf16 pays."""

import torch


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to run in bf16 autocast: on request, or where the hardware multiplies it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
