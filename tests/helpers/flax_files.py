"""Writes files as flax.serialization does, from the description of the format alone; and weights under flax's names."""

import msgpack
import numpy as np
import torch


def packed(value) -> msgpack.ExtType:
    """An array (type 1) or a numpy scalar (type 3) as flax packs it; torch tensors keep their dtype's name."""
    if isinstance(value, torch.Tensor):
        raw = value.contiguous().view(torch.uint8) if value.numel() else value
        name, data = str(value.dtype).removeprefix("torch."), raw.numpy().tobytes() if value.numel() else b""
        return msgpack.ExtType(1, msgpack.packb((tuple(value.shape), name, data), use_bin_type=True))
    body = msgpack.packb((value.shape, value.dtype.name, value.tobytes("C")), use_bin_type=True)
    return msgpack.ExtType(1 if isinstance(value, np.ndarray) else 3, body)


def chunked(value: np.ndarray, size: int) -> dict:
    """A large array as flax cuts it: flat pieces of ``size`` numbers."""
    flat = value.reshape(-1)
    pieces = [flat[i : i + size] for i in range(0, flat.size, size)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(value.shape)},
        "chunks": {str(i): piece for i, piece in enumerate(pieces)},
    }


def nested(flat: dict) -> dict:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def write(path, tree) -> None:
    path.write_bytes(msgpack.packb(tree, default=packed, strict_types=True))


def mae_in_flax(network) -> dict:
    """The weights of an MAE as flax names and lays them out; names built from the official classes, block by block."""
    found = {}

    def conv(name, layer):
        found[f"{name}/kernel"] = layer.weight.detach().permute(2, 3, 1, 0).numpy()
        if layer.bias is not None:
            found[f"{name}/bias"] = layer.bias.detach().numpy()

    def norm(name, layer):
        found[f"{name}/scale"], found[f"{name}/bias"] = layer.weight.detach().numpy(), layer.bias.detach().numpy()

    encoder, decoder = network.encoder, network.decoder
    conv("encoder/conv1", encoder.stem[0])
    norm("encoder/gn1", encoder.stem[1])
    for i, stage in enumerate(encoder.stages):
        norm(f"encoder/layer{i + 1}_norm", stage.norm)
        for j, block in enumerate(stage.blocks):
            place = f"encoder/stages_{i}/layers_{j}"
            for k, (c, n) in enumerate([(block.conv1, block.norm1), (block.conv2, block.norm2)], 1):
                conv(f"{place}/conv{k}", c)
                norm(f"{place}/gn{k}", n)
            if i and not j:  # the first stage keeps width and size, so it has no projection
                conv(f"{place}/proj_conv", block.shortcut[0])
                norm(f"{place}/proj_gn", block.shortcut[1])
    conv("decoder/bridge/conv", decoder.bridge[0])
    norm("decoder/bridge/gn", decoder.bridge[1])
    for name, up in zip(("up43", "up32", "up21", "up10"), decoder.ups, strict=True):
        norm(f"decoder/{name}/concat_norm_fn", up.norm)
        for part in ("project", "refine"):
            official = {"project": "proj", "refine": "refine"}[part]
            conv(f"decoder/{name}/{official}/conv", getattr(up, part)[0])
            norm(f"decoder/{name}/{official}/gn", getattr(up, part)[1])
    conv("decoder/head", decoder.head)
    found["fc/kernel"], found["fc/bias"] = network.head.weight.detach().T.numpy(), network.head.bias.detach().numpy()
    return {name: np.ascontiguousarray(value) for name, value in found.items()}
