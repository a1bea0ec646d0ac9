"""What the commands can be told; the texts are their help."""

from dataclasses import dataclass
from typing import Literal

HELP = """usage: dmformer COMMAND [OPTIONS]

Convolutional-attention vision backbones: trained, reported and reused by one command.

commands:
  train     train a classifier or a segmenter on photos; writes a run folder with a report
  eval      score a trained model on a set of photos
  predict   classify photos, or segment them
  convert   make a published weights file of VAN, SMT, ViTAE or ViTAEv2 usable here and in timm
  bench     measure the speed and memory of models, ours and timm's, in several forms
  models    list the models

examples:
  dmformer train                                     solar cells, sound or defective: the demo, in minutes on a CPU
  dmformer train scratch --data photos/              your photos, one folder a class
  dmformer train finetune --data photos/ --weights runs/elpv-dmformer_n-1/best
  dmformer train camvid --data camvid/               semantic segmentation
  dmformer eval runs/elpv-dmformer_n-1/best --data elpv
  dmformer predict runs/elpv-dmformer_n-1/best photo.jpg folder/ --top 3
  dmformer convert van_b0.pth van_b0/
  dmformer bench dmformer_s convnext_tiny --forms eager fused openvino
  dmformer models 'van_*'

`dmformer COMMAND --help` shows the options of a command.
"""

TRAIN_HELP = """Train a classifier or a segmenter, into a run folder with a report.

recipes (dmformer train RECIPE [OPTIONS]; elpv if none is named):
{recipes}

examples:
  dmformer train                                   the demo: solar cells, sound or defective
  dmformer train scratch --data photos/            photos/CLASS/*.jpg, or photos/train/CLASS/*.jpg and photos/val/
  dmformer train scratch --data photos/ --epochs 60 --image-size 160 --class-weights balanced
  dmformer train finetune --data photos/ --weights runs/scratch-1/best --freeze 2
  dmformer train segment --data images/ --masks masks/ --classes names.txt --weights van_b2/ --model van_b2
  dmformer train --model-args gate=False --name without-gate
  dmformer train --resume                          go on with the run that was stopped
  torchrun --nproc-per-node 8 -m dmformer train imagenet1k_dmformer_s --data imagenet/

The options below show the values of the recipe '{name}'.
"""

MASK_OPTIONS = ("masks", "reduce_zero_label", "ignore_index", "window", "scales", "flip", "overwrite")
"""Options that only segmenters have."""


@dataclass(frozen=True)
class EvalOptions:
    """Score a trained model.

    A classifier: top-1, top-5, balanced accuracy, macro F1 and AUROC; a segmenter: mIoU, mean and pixel accuracy, and
    each class. With 95 % intervals.

    examples:
      dmformer eval runs/elpv-dmformer_n-1/best
      dmformer eval runs/photos-1/best --data photos/test --json scores.json
      dmformer eval runs/camvid-1/best --data camvid/ --scales 0.75 1 1.25 --flip
    """

    source: str
    """A run's best/ folder, or hf-hub:owner/name."""
    data: str | None = None
    """elpv (its held-out quarter, what a classifier is scored on by default), a folder or .tar of class folders, or a
    set that timm knows, e.g. torch/cifar10. For a segmenter a folder as in training.
    Of a folder or .tar with splits the test split counts, else the val split."""
    data_root: str | None = None
    """Where a named set lies or is cached."""
    split: str = "validation"
    """Split of a named set."""
    batch_size: int = 64
    """Images at a time."""
    workers: int | None = None
    """Processes that read images; by default as many as there are cores, at most 8."""
    max_broken: float = 0.05
    """Share of unreadable images above which the figures are refused."""
    masks: str | None = None
    """Segmenters: folder of the id masks, where --data is a folder of images."""
    reduce_zero_label: bool | None = None
    """Segmenters: id 0 in the masks is unlabelled and class k is stored as k + 1 (ADE20K); by default as in the masks
    that were trained on."""
    ignore_index: tuple[int, ...] | None = None
    """Segmenters: ids in the masks that mean unlabelled; likewise."""
    window: int | None = None
    """Segmenters: side in pixels of the sliding window; by default as it was trained."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: factors on the images' size whose predictions are averaged."""
    flip: bool = False
    """Segmenters: average with the images mirrored."""
    json: str | None = None
    """Also write the scores to this file as JSON; - prints them instead of the table."""


@dataclass(frozen=True)
class PredictOptions:
    """Classify photos with a trained classifier, or segment them with a trained segmenter.

    A segmenter writes STEM.overlay.png and STEM.mask.png (ids of the classes, from 0) for each photo, and legend.png.
    Video goes in as a folder of frames.

    The first photo waits for torch and timm to be imported: seconds, about 10 on a slow machine.

    examples:
      dmformer predict runs/elpv-dmformer_n-1/best photo.jpg folder/ --top 3
      dmformer predict runs/elpv-dmformer_n-1/best folder/ --format csv > classes.csv
      curl -s $URL | dmformer predict runs/elpv-dmformer_n-1/best - --format json
      dmformer predict runs/camvid-1/best frames/ --out segmented/
    """

    source: str
    """A run's best/ folder, or hf-hub:owner/name."""
    photos: tuple[str, ...]
    """Image files, folders (searched to the bottom), or - for an image on standard input."""
    top: int = 3
    """Classes to show."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the result."""
    batch_size: int = 16
    """Classifiers: photos at a time."""
    out: str | None = None
    """Segmenters: folder of the pictures; by default predictions/."""
    window: int | None = None
    """Segmenters: side in pixels of the sliding window; by default as it was trained."""
    scales: tuple[float, ...] = (1.0,)
    """Segmenters: factors on the photos' size whose predictions are averaged."""
    flip: bool = False
    """Segmenters: average with the photos mirrored."""
    overwrite: bool = False
    """Segmenters: replace pictures that are there."""


@dataclass(frozen=True)
class ConvertOptions:
    """Recognise a published weights file and write a folder that predict, eval, train --weights and timm load.

    Files of the authors of VAN, SMT, ViTAE and ViTAEv2, and VAN's of OpenMMLab and Hugging Face. They are read as
    tensors only; nothing in them is run. Every tensor must be used and every parameter filled.

    examples:
      dmformer convert van_tiny_754.pth.tar van_b0/
      dmformer predict van_b0/ photo.jpg
      dmformer train finetune --model van_b0 --weights van_b0/ --data photos/
      python -c "import dmformer, timm; timm.create_model('local-dir:van_b0', pretrained=True)"
    """

    source: str
    """A .pth, .pth.tar or .safetensors file."""
    out: str
    """Folder to write: model.safetensors and config.json."""
    drop_head: bool = False
    """Leave the classifier out, e.g. one of 21,841 classes."""
    image_size: int | None = None
    """Side in pixels that the weights were tuned for, where the file's published name does not tell, e.g. 384."""
    overwrite: bool = False
    """Replace a model that is in the folder."""


@dataclass(frozen=True)
class BenchOptions:
    """Measure speed and memory: dmformer bench [MODELS...] [OPTIONS]

    Everything is prepared first; then every candidate has one turn in each of several rounds, so that what else the
    machine does falls on all alike. Speed does not depend on the values of the weights: models given by name have
    random ones, nothing is downloaded.

    images/s: median of the rounds, and the middle half of them. ms: of a call with the whole batch. ratio: speed by
    the baseline's, median of the rounds' ratios. MB: the most that a call needs besides weights and what else is held
    between calls. difference: of the logits from the plain float32 model's, by the largest of those.

    The exported forms (pip install 'dmformer[export]') run on the CPU with as many threads as PyTorch.

    examples:
      dmformer bench                                       dmformer_s, as it is and fused
      dmformer bench van_b0 resnet18 --forms eager fused onnxruntime openvino --threads 1
      dmformer bench runs/photos-1/best --batch-sizes 1    your model, an image at a time
      dmformer bench dmformer_s --dtypes float32 bfloat16 --baseline dmformer_s/eager/float32
      dmformer bench dmformer_s --mode training --batch-sizes 16 --forms eager compiled
      dmformer bench dmformer_s+upernet --image-size 512 --batch-sizes 1 --forms plain fused
      dmformer bench --peers --forms fused openvino --csv peers.csv --plot peers.svg
    """

    models: tuple[str, ...] = ()
    """Names of ours or of timm's, with +fpn or +upernet for a segmenter of 150 classes over them; runs' best/ folders;
    or hf-hub:owner/name. They may stand before the options. None is dmformer_s."""
    peers: bool = False
    """Add DMFormer-S and models of its size: ConvNeXt-T, Swin-T, PVTv2-B2, PoolFormer-S36, InceptionNeXt-T, MambaOut-T,
    ResNet-50."""
    forms: tuple[Literal["plain", "eager", "compiled", "fused", "onnxruntime", "openvino"], ...] = ()
    """plain: with the framework's own depth-wise convolutions; eager: the model as it is; compiled: by torch.compile,
    which takes minutes to start; fused: dmformer.fuse;
    onnxruntime, openvino: the fused model, exported. None is eager and fused; in training eager."""
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32",)
    """Of weights and images; of OpenVINO's arithmetic; of autocast in training."""
    mode: Literal["inference", "training"] = "inference"
    """training: forward, cross entropy, backward and a step of AdamW."""
    batch_sizes: tuple[int, ...] = (1, 8)
    """Images a call."""
    image_size: int = 224
    """Height and width in pixels."""
    device: Literal["cpu", "cuda"] | None = None
    """cuda where there is one, else cpu."""
    layout: Literal["channels_last", "contiguous"] = "channels_last"
    """Memory format of PyTorch's forms."""
    threads: int | None = None
    """Of the CPU; as many as PyTorch takes."""
    rounds: int = 7
    """Turns of each candidate, after one that does not count."""
    seconds: float = 0.5
    """Least length of a turn: short calls are repeated."""
    baseline: str | None = None
    """MODEL, MODEL/FORM or MODEL/FORM/DTYPE whose speed is 1; the first candidate."""
    csv: str | None = None
    """Also write everything known of each candidate to this file, with machine, versions and date."""
    plot: str | None = None
    """Also draw published top-1 against speed at the largest batch; .svg or .png."""
    overwrite: bool = False
    """Replace files that are there."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the result."""


@dataclass(frozen=True)
class ModelsOptions:
    """List the models: name, parameters, multiply-adds at 224 x 224, published ImageNet-1K top-1, paper.

    The top-1 is the paper's, with what it was trained on: in1k, ImageNet-1K alone; in22k_ft_in1k, ImageNet-22K first.

    examples:
      dmformer models
      dmformer models 'smt_*' --format csv
    """

    filter: str = "*"
    """Part of a name, or a shell pattern."""
    format: Literal["table", "csv", "json"] = "table"
    """How to print the list."""
