"""Environment variables of processes, as launchers set them."""

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


MESH_VARIABLES = {"replicate": "DP_REPLICATE", "shard": "DP_SHARD", "tensor": "TP"}


def launch_variables(world_size: int, *engines: dict[str, str], **sizes: int) -> dict[str, str]:
    """The variables of rank 0 of a launch; `sizes` are those of the YAML's parallelism_config."""
    environment = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "WORLD_SIZE": str(world_size),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    for engine in engines:
        environment |= engine
    if sizes:
        environment["ACCELERATE_USE_PARALLELISM_CONFIG"] = "true"
        for dim, variable in MESH_VARIABLES.items():
            environment[f"PARALLELISM_CONFIG_{variable}_SIZE"] = str(sizes.get(dim, 1))
    return environment
