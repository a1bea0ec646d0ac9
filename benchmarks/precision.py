"""Training in bfloat16 beside float32: images per second of processor time, both precisions in turn, on one thread.

python benchmarks/precision.py      # one model of each family and three of timm's, at 96 px, with AdamW; a few minutes

`--precision auto` follows it: bf16 for the models of this package on a CPU that has instructions for it.
"""

import statistics
import time

import timm
import torch
import torch.nn.functional as F
from record import record

import dmformer  # noqa: F401  (registers the models)

MODELS = (
    *("dmformer_n", "dmformer_s", "van_b0", "smt_t", "vitae_t", "vitaev2_s"),
    *("resnet18", "convnext_atto", "efficientnet_b0"),
)
SIZE, BATCH, ROUNDS = 96, 16, 7


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (BATCH,))
    for name in MODELS:
        model = timm.create_model(name, num_classes=10).train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(ROUNDS + 1):  # the first round is a warm-up
            for bf16, spent in seconds.items():
                started = time.process_time()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = F.cross_entropy(model(images), targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if turn:
                    spent.append(time.process_time() - started)
        float32, bfloat16 = (statistics.median(spent) for spent in seconds.values())
        row = {"model": name, "image_size": SIZE, "batch": BATCH}
        row |= {"float32": f"{BATCH / float32:.1f}", "bfloat16": f"{BATCH / bfloat16:.1f}"}
        record("precision", [row | {"ratio": f"{float32 / bfloat16:.2f}"}])


if __name__ == "__main__":
    main()
