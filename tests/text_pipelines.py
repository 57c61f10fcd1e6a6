"""Text-to-image pipelines of diffusers, tiny and of random weights, built from configurations alone."""

import diffusers
import torch
import transformers
from tokenizers import pre_tokenizers

WIDTH = 16  # of every text encoder, but for T5 beside CLIP: 32
LETTERS = [chr(code) for code in range(33, 127)]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def numbered(words):
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


def clip_tokenizer(pad="<|endoftext|>"):
    words = [*BYTES, *(letter + "</w>" for letter in BYTES), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab=numbered(words), merges=[], model_max_length=16, pad_token=pad)


def t5_tokenizer():
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    return transformers.T5Tokenizer(
        vocab=[(p, -float(n)) for n, p in enumerate(pieces)], extra_ids=0, model_max_length=16
    )


def gemma_tokenizer():
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *LETTERS]
    return transformers.GemmaTokenizer(vocab=numbered(words), merges=[], model_max_length=64)


def qwen_tokenizer():
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=numbered([*BYTES, "<|endoftext|>", *special]),
        merges=[],
        model_max_length=512,
        extra_special_tokens=special,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def clip(tokenizer, kind="CLIPTextModel"):
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=WIDTH,
        **marks,
    )
    return getattr(transformers, kind)(config).eval()


def t5(tokenizer, width=WIDTH):
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config).eval()


def language_model(kind, tokenizer, layers=2):
    """Of the names Gemma2Model, Qwen3Model, Qwen3ForCausalLM."""
    family = kind.removesuffix("Model").removesuffix("ForCausalLM")
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return getattr(transformers, kind)(config).eval()


def kl(kind="AutoencoderKL", **changes):
    """Halves the side once."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    return getattr(diffusers, kind)(**{**blocks, **sizes, **changes}).eval()


def flow_vae():
    return kl(shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False)


def deep_compression():
    block, sizes = ("ResBlock", "EfficientViTBlock"), {"latent_channels": 4, "attention_head_dim": 2}
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("block_types", block),
            ("block_out_channels", (8, 8)),
            ("qkv_multiscales", ((), (5,))),
            ("layers_per_block", (1, 1)),
        )
    }
    named = {"downsample_block_type": "conv", "upsample_block_type": "interpolate"}
    return diffusers.AutoencoderDC(
        **sizes, **sides, **named, decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.4
    ).eval()


def unet(**changes):
    small = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**small, **changes}).eval()


def stable_diffusion(prediction="epsilon", **schedule):
    tokenizer = clip_tokenizer("!" if prediction == "v_prediction" else "<|endoftext|>")
    return diffusers.StableDiffusionPipeline(
        vae=kl(),
        text_encoder=clip(tokenizer),
        tokenizer=tokenizer,
        unet=unet(use_linear_projection=prediction == "v_prediction", attention_head_dim=[2, 4]),
        scheduler=diffusers.DDIMScheduler(
            **SCALED_LINEAR, prediction_type=prediction, clip_sample=False, set_alpha_to_one=True, **schedule
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl():
    first, second = clip_tokenizer(), clip_tokenizer("!")
    return diffusers.StableDiffusionXLPipeline(
        vae=kl(force_upcast=False),
        text_encoder=clip(first),
        text_encoder_2=clip(second, "CLIPTextModelWithProjection"),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
            transformer_layers_per_block=(1, 1),
            use_linear_projection=True,
        ),
        scheduler=diffusers.DDIMScheduler(**SCALED_LINEAR, clip_sample=False, set_alpha_to_one=True),
        add_watermarker=False,
    )


def pixart():
    tokenizer = t5_tokenizer()
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(tokenizer),
        vae=kl(),
        transformer=diffusers.PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            cross_attention_dim=24,
            caption_channels=WIDTH,
            sample_size=8,
            use_additional_conditions=False,
        ).eval(),
        scheduler=diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True),
    )


def sana(sprint=False):
    tokenizer = gemma_tokenizer()
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
        guidance_embeds=sprint,
    ).eval()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = diffusers.SCMScheduler() if sprint else diffusers.DPMSolverMultistepScheduler(**flow)
    return getattr(diffusers, "SanaSprintPipeline" if sprint else "SanaPipeline")(
        tokenizer=tokenizer,
        text_encoder=language_model("Gemma2Model", tokenizer),
        vae=deep_compression(),
        transformer=transformer,
        scheduler=scheduler,
    )


def sd3():
    tokenizer, third = clip_tokenizer(), t5_tokenizer()
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=clip(tokenizer, "CLIPTextModelWithProjection"),
        tokenizer=tokenizer,
        text_encoder_2=clip(tokenizer, "CLIPTextModelWithProjection"),
        tokenizer_2=tokenizer,
        text_encoder_3=t5(third, 2 * WIDTH),
        tokenizer_3=third,
    )


def flux(dev=True):
    first, second = clip_tokenizer(), t5_tokenizer()
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev),
        vae=flow_vae(),
        text_encoder=clip(first),
        tokenizer=first,
        text_encoder_2=t5(second, 2 * WIDTH),
        tokenizer_2=second,
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=dev,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
    )


def z_image():
    tokenizer = qwen_tokenizer()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[1024, 64, 64],
    ).eval()
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token, std=0.02)  # diffusers leaves them uninitialised
    return diffusers.ZImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=language_model("Qwen3Model", tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )


def lumina2():
    tokenizer = gemma_tokenizer()
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 4, 8),
            axes_lens=(512, 64, 64),
            cap_feat_dim=WIDTH,
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=flow_vae(),
        text_encoder=language_model("Gemma2Model", tokenizer),
        tokenizer=tokenizer,
    )


def qwen_image():
    tokenizer = qwen_tokenizer()
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(tokenizer),
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
    }
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, 0.0, -0.1, 0.2],
            latents_std=[1.0, 2.0, 1.5, 0.5],
        ).eval(),
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
    )


def flux2_klein():
    tokenizer = qwen_tokenizer()
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=kl("AutoencoderKLFlux2"),
        text_encoder=language_model("Qwen3ForCausalLM", tokenizer, 28),
        tokenizer=tokenizer,
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ).eval(),
        is_distilled=False,
    )


PIPELINES = {
    "sd": stable_diffusion,
    "sd-v": lambda: stable_diffusion("v_prediction"),
    "sd-zero-snr": lambda: stable_diffusion("v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    "sdxl": sdxl,
    "pixart": pixart,
    "sana": sana,
    "sana-sprint": lambda: sana(sprint=True),
    "sd3": sd3,
    "flux": flux,
    "flux-schnell": lambda: flux(dev=False),
    "flux2": flux2_klein,
    "qwen-image": qwen_image,
    "lumina2": lumina2,
    "z-image": z_image,
}


def built(name):
    """The pipeline of a name, of weights that are always the same; global randomness is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        pipeline = PIPELINES[name.removesuffix("-euler")]()
    if name == "sana-euler":
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def side_of(name):
    """Side of the smallest images whose latents all blocks of a tiny network take."""
    return {"sana": 32, "sana-euler": 32, "sana-sprint": 32, "lumina2": 64}.get(name, 16)
