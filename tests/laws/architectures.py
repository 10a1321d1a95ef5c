"""Small versions of public architectures, with random weights; none of them mixes examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
from timm.models.convmixer import ConvMixer
from timm.models.metaformer import MetaFormer, Pooling
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import Tensor, nn
from torchvision import models as vision
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.video.resnet import BasicBlock as VideoBlock
from torchvision.models.video.resnet import BasicStem, Conv3DSimple, VideoResNet

import dpmodel
from dpmodel.nets import WideResNet

CLASSES, VOCABULARY, LENGTH = 4, 40, 10

#: Sizes, by the names that most configurations of ``transformers`` use.
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "num_labels": CLASSES,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

#: The subset that vision models accept.
SEES = {name: TINY[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}

group_norm = partial(nn.GroupNorm, 1)


@dataclass(frozen=True)
class Architecture:
    """A network and inputs for it.

    Args:
        name: The name that its authors gave it.
        network: Makes the network, with random weights.
        inputs: Makes inputs for a given number of examples.
        slow: Whether the network is larger than the others.
    """

    name: str
    network: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    slow: bool = False

    def __str__(self) -> str:
        return self.name


def images(side: int = 32) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda count: (torch.randn(count, 3, side, side),)


def videos(count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, 4, 16, 16),)


def texts(count: int) -> tuple[Tensor, ...]:
    """Tokens and their mask; every other row is padded at the end."""
    tokens = torch.randint(3, VOCABULARY, (count, LENGTH))
    mask = torch.ones_like(tokens)
    tokens[::2, -3:] = mask[::2, -3:] = 0
    return tokens, mask


def spectrograms(count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, 8, 2 * LENGTH),)


def waves(count: int) -> tuple[Tensor, ...]:
    return (torch.randn(count, 400),)


class Classifies(nn.Module):
    """The logits of a model of ``transformers``, or a dense layer over the mean of its last states.

    Args:
        model: The model.
        names: Names of the inputs, as the model calls them.
        width: Width of the last states, if the model has no head.
        options: Further arguments of each call.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], width: int | None = None, **options: Any) -> None:
        super().__init__()
        self.model, self.names, self.options = model, names, options
        self.head = nn.Identity() if width is None else nn.Linear(width, CLASSES)

    def forward(self, *inputs: Tensor) -> Tensor:
        out = self.model(**dict(zip(self.names, inputs, strict=True)), **self.options)
        return out.logits if hasattr(out, "logits") else self.head(out.last_hidden_state.mean(1))


def fixed(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Networks with batch normalisation, after ``dpmodel.fix``."""
    return lambda: dpmodel.fix(make())


def narrow(network: Any, places: tuple[int, ...], width: int = 32) -> nn.Module:
    """The network with a classifier of few hidden units instead of thousands."""
    sizes = [network.classifier[places[0]].in_features, width, width, CLASSES]
    for place, (before, after) in zip(places, pairwise(sizes), strict=True):
        network.classifier[place] = nn.Linear(before, after)
    return network


def of_vision() -> list[Architecture]:
    """Architectures of torchvision."""
    mbconv = [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 1)]
    regnet = BlockParams([1, 1], [8, 16], [4, 4], [1.0, 1.0], [2, 2], 0.25)
    blocks = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]
    window = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "num_classes": CLASSES}
    layers = vision.vgg.make_layers
    return [
        Architecture(
            "ResNet", lambda: vision.ResNet(vision.resnet.BasicBlock, [1] * 4, CLASSES, norm_layer=group_norm), images()
        ),
        Architecture(
            "ResNeXt",
            fixed(lambda: vision.ResNet(vision.resnet.Bottleneck, [1] * 4, CLASSES, groups=4, width_per_group=2)),
            images(64),
        ),
        Architecture(
            "DenseNet", fixed(lambda: vision.DenseNet(4, (2, 2), 8, num_classes=CLASSES, drop_rate=0.1)), images(64)
        ),
        Architecture("MobileNetV2", fixed(lambda: vision.MobileNetV2(CLASSES, 0.25)), images(64)),
        Architecture(
            "MobileNetV3", fixed(lambda: vision.mobilenet_v3_small(width_mult=0.25, num_classes=CLASSES)), images(64)
        ),
        Architecture("EfficientNet", lambda: vision.EfficientNet(mbconv, 0.2, 0.2, CLASSES, group_norm), images()),
        Architecture("SqueezeNet", lambda: vision.SqueezeNet("1_1", CLASSES), images()),
        Architecture(
            "ShuffleNetV2", fixed(lambda: vision.ShuffleNetV2([2, 2, 2], [8, 16, 16, 32, 32], CLASSES)), images(64)
        ),
        Architecture("MNASNet", fixed(lambda: vision.MNASNet(0.25, CLASSES)), images(64)),
        Architecture("RegNet", fixed(lambda: RegNet(regnet, CLASSES, stem_width=8)), images()),
        Architecture("ConvNeXt", lambda: vision.ConvNeXt(blocks, 0.2, num_classes=CLASSES), images()),
        Architecture("Swin", lambda: vision.SwinTransformer(window_size=[4, 4], dropout=0.1, **window), images()),
        Architecture(
            "Swin V2",
            lambda: vision.SwinTransformer(
                window_size=[4, 4], block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2, **window
            ),
            images(),
        ),
        Architecture(
            "ViT",
            lambda: vision.VisionTransformer(32, 8, 2, 2, 16, 32, 0.1, 0.1, num_classes=CLASSES),
            images(),
        ),
        Architecture(
            "MaxViT",
            fixed(lambda: vision.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 8, 0.2, num_classes=CLASSES)),
            images(),
        ),
        Architecture(
            "R3D",
            fixed(lambda: VideoResNet(VideoBlock, [Conv3DSimple] * 4, [1] * 4, BasicStem, CLASSES)),
            videos,
            slow=True,
        ),
        Architecture("AlexNet", lambda: narrow(vision.AlexNet(CLASSES), (1, 4, 6)), images(64)),
        Architecture("VGG", lambda: narrow(vision.VGG(layers([8, "M", 512]), CLASSES), (0, 3, 6)), images()),
        Architecture(
            "GoogLeNet",
            fixed(lambda: vision.GoogLeNet(CLASSES, aux_logits=False, init_weights=False)),
            images(64),
            slow=True,
        ),
        Architecture(
            "Inception",
            fixed(lambda: vision.Inception3(CLASSES, aux_logits=False, init_weights=False)),
            images(75),
            slow=True,
        ),
    ]


def of_dpmodel() -> list[Architecture]:
    """Networks of this library with layers of its own."""
    return [Architecture("WideResNet", lambda: WideResNet(CLASSES, depth=10, width=1), images())]


def by_timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of ``timm`` by name, with a different size."""
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


def of_timm() -> list[Architecture]:
    """Architectures of timm."""
    tokens = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    mixes = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 16, "num_classes": CLASSES}
    stages = {"depths": (1,) * 4, "embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2)}
    dims = {"depths": (1,) * 4, "dims": (8, 8, 16, 16)}
    small = {
        "DeiT III": by_timm("deit3_small_patch16_224", drop_path_rate=0.2, **tokens),
        "BEiT v2": by_timm("beitv2_base_patch16_224", **tokens),
        "EVA-02": by_timm("eva02_tiny_patch14_224", **tokens),
        "ViT with rotary positions": by_timm("vit_base_patch16_rope_reg1_gap_256", **tokens),
        "NaFlexViT": by_timm("naflexvit_base_patch16_gap", embed_dim=16, depth=2, num_heads=2),
        "CaiT": by_timm("cait_xxs24_224", **tokens),
        "MLP-Mixer": lambda: MlpMixer(**mixes),
        "ResMLP": lambda: MlpMixer(**mixes, mlp_ratio=2, block_layer=ResBlock, norm_layer=Affine),
        "ConvMixer": fixed(lambda: ConvMixer(16, 2, 3, 4, num_classes=CLASSES)),
    }
    large = {
        "XCiT": fixed(by_timm("xcit_nano_12_p16_224", img_size=32, embed_dim=16, depth=2, num_heads=2)),
        "PVT v2": by_timm("pvt_v2_b0", **stages),
        "Twins": by_timm("twins_svt_small", img_size=64, wss=(2, 2, 1, 1), **stages),
        "DaViT": by_timm("davit_tiny", **stages),
        "EdgeNeXt": by_timm("edgenext_xx_small", depths=(1,) * 4, dims=(8, 16, 16, 24)),
        "ConvNeXt of timm": by_timm("convnext_atto", drop_path_rate=0.1, **dims),
        "MambaOut": by_timm("mambaout_femto", **dims),
        "PoolFormer": lambda: MetaFormer(num_classes=CLASSES, token_mixers=Pooling, **dims),
        "Hiera": by_timm("hiera_tiny_224", img_size=(64, 64), embed_dim=8, num_heads=1, stages=(1,) * 4),
        "StarNet": fixed(by_timm("starnet_s1", base_dim=8, depths=(1,) * 4)),
        "RepViT": fixed(by_timm("repvit_m0_9", embed_dim=(8, 8, 16, 16), depth=(1,) * 4)),
        "FastViT": fixed(by_timm("fastvit_t8", layers=(1,) * 4, embed_dims=(8, 16, 16, 16))),
        "MobileViT": fixed(by_timm("mobilevit_xxs")),
        "MobileViT v2": fixed(by_timm("mobilevitv2_050")),
        "GhostNet": fixed(by_timm("ghostnet_050")),
        "SKNet": fixed(by_timm("skresnet18")),
    }
    return [
        *(Architecture(name, make, images()) for name, make in small.items()),
        *(Architecture(name, make, images(64), slow=True) for name, make in large.items()),
    ]


def reads(kind: str, width: int | None = None, config: str | None = None, **changes: Any) -> Callable[[], nn.Module]:
    """A tiny model of ``transformers`` for texts, by name."""

    def make() -> nn.Module:
        import transformers

        family = config or kind.split("For")[0].removesuffix("Model").removesuffix("Encoder")
        made = getattr(transformers, f"{family}Config")(**{**TINY, **changes})
        return Classifies(getattr(transformers, kind)(made), ("input_ids", "attention_mask"), width)

    return make


def sees(kind: str, **options: Any) -> Callable[[], nn.Module]:
    """A tiny model of ``transformers`` for images, by name."""

    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, f"{kind.split('For')[0]}Config")(image_size=32, num_labels=CLASSES, **options)
        return Classifies(getattr(transformers, kind)(made), ("pixel_values",))

    return make


def hears_spectrograms() -> nn.Module:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=LENGTH,
        dropout=0.1,
        encoder_layerdrop=0.2,
    )
    return Classifies(WhisperEncoder(config), ("input_features",), 16)


def hears_waves() -> nn.Module:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        **TINY,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        mask_time_length=2,
    )
    return Classifies(Wav2Vec2ForSequenceClassification(config), ("input_values",))


def of_language() -> list[Architecture]:
    """Architectures of ``transformers``: texts, images and sound."""
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    bart = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    bart |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layerdrop": 0.2}
    gpt2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    distil = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    few_keys = {"num_key_value_heads": 1, "attention_dropout": 0.1}
    stages = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "drop_path_rate": 0.2}
    return [
        Architecture("BERT", reads("BertForSequenceClassification"), texts),
        Architecture("RoBERTa", reads("RobertaForSequenceClassification"), texts),
        Architecture("DistilBERT", reads("DistilBertForSequenceClassification", **distil), texts),
        Architecture("ALBERT", reads("AlbertForSequenceClassification", embedding_size=8), texts),
        Architecture("ELECTRA", reads("ElectraForSequenceClassification", embedding_size=8), texts),
        Architecture(
            "DeBERTa",
            reads("DebertaV2ForSequenceClassification", relative_attention=True, pos_att_type=["p2c", "c2p"]),
            texts,
        ),
        Architecture("GPT-2", reads("GPT2ForSequenceClassification", **gpt2), texts),
        Architecture("OPT", reads("OPTForSequenceClassification", ffn_dim=32, word_embed_proj_dim=16), texts),
        Architecture("Llama", reads("LlamaForSequenceClassification", **few_keys), texts),
        Architecture("Mistral", reads("MistralForSequenceClassification", sliding_window=4, **few_keys), texts),
        Architecture("Qwen2", reads("Qwen2ForSequenceClassification", **few_keys), texts),
        Architecture("BART", reads("BartModel", 16, **bart), texts),
        Architecture("T5", reads("T5EncoderModel", 16, "T5", **t5), texts),
        Architecture("FNet", lambda: _without_mask(reads("FNetForSequenceClassification")()), texts),
        Architecture(
            "ViT of transformers",
            sees("ViTForImageClassification", patch_size=8, hidden_dropout_prob=0.1, **SEES),
            images(),
        ),
        Architecture("BEiT", sees("BeitForImageClassification", patch_size=8, drop_path_rate=0.2, **SEES), images()),
        Architecture("ConvNeXt V2", sees("ConvNextV2ForImageClassification", **stages), images()),
        Architecture(
            "Swin of transformers",
            sees("SwinForImageClassification", embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
            images(),
        ),
        Architecture("Whisper", hears_spectrograms, spectrograms),
        Architecture("Wav2Vec2", hears_waves, waves),
    ]


def _without_mask(model: Classifies) -> nn.Module:
    """The model without its mask argument, which some models lack."""
    forward, model.names = model.forward, model.names[:1]
    model.forward = lambda tokens, mask: forward(tokens)
    return model


ARCHITECTURES = [*of_vision(), *of_language(), *of_timm(), *of_dpmodel()]
