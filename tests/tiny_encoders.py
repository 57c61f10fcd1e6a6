"""Text-to-image pipelines of a few thousand random weights, with text encoders and without network and VAE."""


def clip_tokenizer(length=16):
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=length)


def t5_tokenizer(length=16):
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127))]
    vocabulary = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)


def gemma_tokenizer():
    from transformers import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *map(chr, range(33, 127))]
    return GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)


def clip(tokenizer, pooled=False):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if pooled else CLIPTextModel)(config).eval()


def t5(tokenizer, width=16):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def gemma(tokenizer):
    from transformers import Gemma2Config, Gemma2Model

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Gemma2Model(Gemma2Config(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, **size)).eval()


def pipelines():
    """A function for each family, by name."""
    import diffusers as d

    one, two, three = clip_tokenizer(), t5_tokenizer(), gemma_tokenizer()
    flow = d.FlowMatchEulerDiscreteScheduler
    encoders = {"tokenizer": one, "text_encoder": clip(one)}
    t5_encoders = {"tokenizer": two, "text_encoder": t5(two)}
    pooled = {"tokenizer_2": one, "text_encoder_2": clip(one, pooled=True)}
    return {
        "sd15": lambda: d.StableDiffusionPipeline(
            **encoders,
            **dict.fromkeys(("vae", "unet", "safety_checker", "feature_extractor")),
            scheduler=d.DDIMScheduler(steps_offset=1, clip_sample=False),
            requires_safety_checker=False,
        ),
        "sdxl": lambda: d.StableDiffusionXLPipeline(
            **encoders, **pooled, vae=None, unet=None, scheduler=d.DDIMScheduler(), add_watermarker=False
        ),
        "pixart": lambda: d.PixArtSigmaPipeline(
            **t5_encoders, vae=None, transformer=None, scheduler=d.DPMSolverMultistepScheduler()
        ),
        "sana": lambda: d.SanaPipeline(
            tokenizer=three, text_encoder=gemma(three), vae=None, transformer=None, scheduler=flow()
        ),
        "sd3": lambda: d.StableDiffusion3Pipeline(
            tokenizer=one,
            text_encoder=clip(one, pooled=True),
            **pooled,
            tokenizer_3=two,
            text_encoder_3=t5(two, 32),
            vae=None,
            transformer=None,
            scheduler=flow(),
        ),
        "flux": lambda: d.FluxPipeline(
            **encoders, tokenizer_2=two, text_encoder_2=t5(two), vae=None, transformer=None, scheduler=flow()
        ),
    }
