"""Training and inference with one thread and with two cores, on a quiet machine and beside a busy process.

python benchmarks/cores.py [ROUNDS] [MODEL...]      # 3 rounds of the smallest of each family and resnet18: an hour

Training: bfloat16, 64 images of 96 and, for dmformer_n, 64 px; two threads in one process, and two processes of one
thread with half of the images each, as `dmformer train` does it. Inference: float32, fused, 32 images; two threads in
each operation, and two threads with images of their own. All ways of a model in turn, medians of the rounds.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time

BATCH, INFERENCE_BATCH, SECONDS = 64, 32, 6.0
MODELS = ("dmformer_n", "van_b0", "smt_t", "vitae_t", "vitaev2_s", "resnet18")
WAYS = {
    "training": {"one thread": (1, 1), "two threads": (2, 1), "two processes": (1, 2)},
    "inference": {"one thread": (1, 1), "two threads": (2, 1), "two threads, images apart": (2, 1)},
}
"""Threads of a process, and processes."""


def work(what: str, way: str, name: str, size: int) -> None:
    """One process of a measurement: print its images a second."""
    import timm
    import torch

    import dmformer
    from dmformer.models.create import size_argument
    from dmformer.nn.over_cores import over_cores

    threads, processes = WAYS[what][way]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=100, **size_argument(name, size))
    model = model.to(memory_format=torch.channels_last)
    if what == "inference":
        images = torch.randn(INFERENCE_BATCH, 3, size, size).to(memory_format=torch.channels_last)
        model = dmformer.fuse(model.eval())

        @torch.inference_mode()
        def step() -> None:
            over_cores(model, images) if "apart" in way else model(images)
    else:
        images = torch.randn(BATCH // processes, 3, size, size).to(memory_format=torch.channels_last)
        labels = torch.randint(0, 100, (len(images),))
        model.train()
        if processes > 1:
            torch.distributed.init_process_group("gloo")
            model = torch.nn.parallel.DistributedDataParallel(model)
            model.broadcast_buffers = False  # as in the training loop
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    for _ in range(2):
        step()
    start, steps = time.perf_counter(), 0
    going = torch.ones(())
    while going:
        step()
        steps += 1
        going.fill_(time.perf_counter() - start < SECONDS)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(going, 0)
    print(steps * len(images) * processes / (time.perf_counter() - start))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def images_per_second(what: str, way: str, name: str, size: int) -> float:
    processes = WAYS[what][way][1]
    environment = {**os.environ, "OMP_NUM_THREADS": str(WAYS[what][way][0]), "WORLD_SIZE": str(processes)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "THP_MEM_ALLOC_ENABLE": "1"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "2147483647"}  # as the command
    command = [sys.executable, __file__, "--work", what, way, name, str(size)]
    started = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"{what} of {name} with {way} failed")
    return float(outputs[0])


def spin() -> None:
    while True:
        pass


def main() -> None:
    from record import record

    if any(name.startswith("-") for name in sys.argv[1:]):
        sys.exit(__doc__)
    arguments = sys.argv[1:]
    rounds = int(arguments.pop(0)) if arguments and arguments[0].isdigit() else 3
    for name in arguments or MODELS:
        for what, size in [("training", 96), *([("training", 64)] if name == "dmformer_n" else []), ("inference", 96)]:
            for busy in (0, 1):
                others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(busy)]
                for other in others:
                    other.start()
                times: dict[str, list[float]] = {way: [] for way in WAYS[what]}
                for _ in range(rounds):
                    for way in times:
                        times[way].append(images_per_second(what, way, name, size))
                for other in others:
                    other.kill()
                rates = {way: statistics.median(values) for way, values in times.items()}
                one = rates["one thread"]
                common = {"model": name, "what": what, "size": size, "busy_processes": busy, "rounds": rounds}
                record(
                    "cores",
                    [
                        {**common, "way": way, "images_per_second": f"{rate:.1f}", "to_one_thread": f"{rate / one:.2f}"}
                        for way, rate in rates.items()
                    ],
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:5], int(sys.argv[5]))
    else:
        main()
