"""Number formats: where half of the bits pays."""

import torch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What autocast computes in: on request, or bf16 where the hardware multiplies it.

    Returns:
        float32 for no autocast.
    """
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        native = bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    return torch.bfloat16 if native else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Autocast to half precision, or none to float32."""
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    return torch.autocast(device.type, half, enabled=dtype != torch.float32)
