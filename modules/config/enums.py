"""The words a config may use; a member's name is what files hold, as OneTrainer spells it."""

from __future__ import annotations

from enum import Enum


class Word(str, Enum):
    """Base of every enumeration: a string that prints, compares and saves as its name."""

    def __str__(self) -> str:
        return str(self.value)


class TrainingMethod(Word):
    """What is trained."""

    FINE_TUNE = "FINE_TUNE"
    LORA = "LORA"
    EMBEDDING = "EMBEDDING"
    FINE_TUNE_VAE = "FINE_TUNE_VAE"


class ModelType(Word):
    """Architecture of the base model."""

    STABLE_DIFFUSION_15 = "STABLE_DIFFUSION_15"
    STABLE_DIFFUSION_15_INPAINTING = "STABLE_DIFFUSION_15_INPAINTING"
    STABLE_DIFFUSION_20 = "STABLE_DIFFUSION_20"
    STABLE_DIFFUSION_20_BASE = "STABLE_DIFFUSION_20_BASE"
    STABLE_DIFFUSION_20_INPAINTING = "STABLE_DIFFUSION_20_INPAINTING"
    STABLE_DIFFUSION_20_DEPTH = "STABLE_DIFFUSION_20_DEPTH"
    STABLE_DIFFUSION_21 = "STABLE_DIFFUSION_21"
    STABLE_DIFFUSION_21_BASE = "STABLE_DIFFUSION_21_BASE"
    STABLE_DIFFUSION_3 = "STABLE_DIFFUSION_3"
    STABLE_DIFFUSION_35 = "STABLE_DIFFUSION_35"
    STABLE_DIFFUSION_XL_10_BASE = "STABLE_DIFFUSION_XL_10_BASE"
    STABLE_DIFFUSION_XL_10_BASE_INPAINTING = "STABLE_DIFFUSION_XL_10_BASE_INPAINTING"
    WUERSTCHEN_2 = "WUERSTCHEN_2"
    STABLE_CASCADE_1 = "STABLE_CASCADE_1"
    PIXART_ALPHA = "PIXART_ALPHA"
    PIXART_SIGMA = "PIXART_SIGMA"
    FLUX_DEV_1 = "FLUX_DEV_1"
    FLUX_FILL_DEV_1 = "FLUX_FILL_DEV_1"
    FLUX_2 = "FLUX_2"
    SANA = "SANA"
    HUNYUAN_VIDEO = "HUNYUAN_VIDEO"
    HI_DREAM_FULL = "HI_DREAM_FULL"
    CHROMA_1 = "CHROMA_1"
    QWEN = "QWEN"
    ANIMA = "ANIMA"
    KREA_2 = "KREA_2"
    Z_IMAGE = "Z_IMAGE"
    ERNIE = "ERNIE"
    IDEOGRAM_4 = "IDEOGRAM_4"
    LUMINA_2 = "LUMINA_2"
    AURA_FLOW = "AURA_FLOW"
    WAN_2 = "WAN_2"


class PeftType(Word):
    """Kind of adapter."""

    LORA = "LORA"
    LOHA = "LOHA"
    OFT_2 = "OFT_2"
    LOKR = "LOKR"


class DataType(Word):
    """How numbers are stored or computed."""

    NONE = "NONE"
    FLOAT_8 = "FLOAT_8"
    FLOAT_16 = "FLOAT_16"
    FLOAT_32 = "FLOAT_32"
    BFLOAT_16 = "BFLOAT_16"
    TFLOAT_32 = "TFLOAT_32"
    INT_8 = "INT_8"
    NFLOAT_4 = "NFLOAT_4"
    FLOAT_W8A8 = "FLOAT_W8A8"
    INT_W8A8 = "INT_W8A8"
    FLOAT_W8A8_COMPRESSED = "FLOAT_W8A8_COMPRESSED"
    INT_W8A8_COMPRESSED = "INT_W8A8_COMPRESSED"
    GGUF = "GGUF"
    GGUF_A8_FLOAT = "GGUF_A8_FLOAT"
    GGUF_A8_INT = "GGUF_A8_INT"


class ModelFormat(Word):
    """Layout of the file that a run leaves behind."""

    DIFFUSERS = "DIFFUSERS"
    ORIGINAL_SINGLE_FILE = "ORIGINAL_SINGLE_FILE"
    ORIGINAL_TRANSFORMER = "ORIGINAL_TRANSFORMER"
    COMFY_TRANSFORMER = "COMFY_TRANSFORMER"
    LEGACY_SAFETENSORS = "LEGACY_SAFETENSORS"
    DIFFUSERS_LORA = "DIFFUSERS_LORA"
    KOHYA_LORA = "KOHYA_LORA"
    ORIGINAL_LORA = "ORIGINAL_LORA"
    COMFY_LORA = "COMFY_LORA"
    LEGACY_LORA = "LEGACY_LORA"
    SAFETENSORS = "SAFETENSORS"
    INTERNAL = "INTERNAL"


class TimeUnit(Word):
    """What an interval counts."""

    EPOCH = "EPOCH"
    STEP = "STEP"
    SECOND = "SECOND"
    MINUTE = "MINUTE"
    HOUR = "HOUR"
    NEVER = "NEVER"
    ALWAYS = "ALWAYS"


class EMAMode(Word):
    """Whether a moving average of the weights is kept, and where."""

    OFF = "OFF"
    GPU = "GPU"
    CPU = "CPU"


class LearningRateScheduler(Word):
    """How the learning rate moves after its warm-up."""

    CONSTANT = "CONSTANT"
    LINEAR = "LINEAR"
    COSINE = "COSINE"
    COSINE_WITH_RESTARTS = "COSINE_WITH_RESTARTS"
    COSINE_WITH_HARD_RESTARTS = "COSINE_WITH_HARD_RESTARTS"
    REX = "REX"
    ADAFACTOR = "ADAFACTOR"
    CUSTOM = "CUSTOM"


class LearningRateScaler(Word):
    """By which batch size the learning rate is scaled."""

    NONE = "NONE"
    BATCH = "BATCH"
    GLOBAL_BATCH = "GLOBAL_BATCH"
    GRADIENT_ACCUMULATION = "GRADIENT_ACCUMULATION"
    BOTH = "BOTH"
    GLOBAL_BOTH = "GLOBAL_BOTH"


class LossScaler(Word):
    """By which batch size the loss is scaled."""

    NONE = "NONE"
    BATCH = "BATCH"
    GLOBAL_BATCH = "GLOBAL_BATCH"
    GRADIENT_ACCUMULATION = "GRADIENT_ACCUMULATION"
    BOTH = "BOTH"
    GLOBAL_BOTH = "GLOBAL_BOTH"


class LossWeight(Word):
    """How the loss of a timestep is weighted."""

    CONSTANT = "CONSTANT"
    P2 = "P2"
    MIN_SNR_GAMMA = "MIN_SNR_GAMMA"
    DEBIASED_ESTIMATION = "DEBIASED_ESTIMATION"
    SIGMA = "SIGMA"


class TimestepDistribution(Word):
    """From which distribution timesteps are drawn."""

    UNIFORM = "UNIFORM"
    SIGMOID = "SIGMOID"
    LOGIT_NORMAL = "LOGIT_NORMAL"
    HEAVY_TAIL = "HEAVY_TAIL"
    COS_MAP = "COS_MAP"
    INVERTED_PARABOLA = "INVERTED_PARABOLA"
    BETA = "BETA"


class NoiseScheduler(Word):
    """Sampler of a sample definition."""

    DDIM = "DDIM"
    EULER = "EULER"
    EULER_A = "EULER_A"
    DPMPP = "DPMPP"
    DPMPP_SDE = "DPMPP_SDE"
    UNIPC = "UNIPC"
    EULER_KARRAS = "EULER_KARRAS"
    DPMPP_KARRAS = "DPMPP_KARRAS"
    DPMPP_SDE_KARRAS = "DPMPP_SDE_KARRAS"
    UNIPC_KARRAS = "UNIPC_KARRAS"


class ConceptType(Word):
    """What a concept's images are used for."""

    STANDARD = "STANDARD"
    VALIDATION = "VALIDATION"
    PRIOR_PREDICTION = "PRIOR_PREDICTION"


class BalancingStrategy(Word):
    """How a concept's `balancing` is read."""

    REPEATS = "REPEATS"
    SAMPLES = "SAMPLES"


class Leftovers(Word):
    """What becomes of images that do not fill a batch of their size."""

    PAD = "PAD"
    ROTATE = "ROTATE"
    DROP = "DROP"


class PromptSource(Word):
    """Where captions come from. The values are lower case in files."""

    SAMPLE = "sample"
    CONCEPT = "concept"
    FILENAME = "filename"


class TagDropoutMode(Word):
    """How tags are dropped from a caption."""

    FULL = "FULL"
    RANDOM = "RANDOM"
    RANDOM_WEIGHTED = "RANDOM WEIGHTED"


class SpecialTagsMode(Word):
    """What the list of special tags does to tag dropout."""

    NONE = "NONE"
    BLACKLIST = "BLACKLIST"
    WHITELIST = "WHITELIST"


class AttentionMechanism(Word):
    """Attention kernel of the denoiser."""

    SDP = "SDP"
    FLASH = "FLASH"
    CUDNN = "CUDNN"
    FLEX = "FLEX"


class GradientReducePrecision(Word):
    """Precision in which GPUs add their gradients."""

    WEIGHT_DTYPE = "WEIGHT_DTYPE"
    FLOAT_32 = "FLOAT_32"
    WEIGHT_DTYPE_STOCHASTIC = "WEIGHT_DTYPE_STOCHASTIC"
    FLOAT_32_STOCHASTIC = "FLOAT_32_STOCHASTIC"


class ImageFormat(Word):
    """File type of sample images."""

    PNG = "PNG"
    JPG = "JPG"


class VideoFormat(Word):
    """File type of sample videos."""

    PNG_IMAGE_SEQUENCE = "PNG_IMAGE_SEQUENCE"
    JPG_IMAGE_SEQUENCE = "JPG_IMAGE_SEQUENCE"
    MP4 = "MP4"


class AudioFormat(Word):
    """File type of sample sounds."""

    MP3 = "MP3"


class CloudType(Word):
    """Kind of remote machine."""

    RUNPOD = "RUNPOD"
    LINUX = "LINUX"


class CloudFileSync(Word):
    """How files travel to and from a remote machine."""

    FABRIC_SFTP = "FABRIC_SFTP"
    NATIVE_SCP = "NATIVE_SCP"


class CloudAction(Word):
    """What happens to a remote machine afterwards."""

    NONE = "NONE"
    STOP = "STOP"
    DELETE = "DELETE"


class ConfigPart(Word):
    """How much of the config is written into the output file's metadata."""

    NONE = "NONE"
    SETTINGS = "SETTINGS"
    ALL = "ALL"


class Optimizer(Word):
    """The optimizers a config can name."""

    ADAGRAD = "ADAGRAD"
    ADAGRAD_8BIT = "ADAGRAD_8BIT"
    ADAM = "ADAM"
    ADAM_8BIT = "ADAM_8BIT"
    ADAMW = "ADAMW"
    ADAMW_8BIT = "ADAMW_8BIT"
    ADAMW_ADV = "ADAMW_ADV"
    AdEMAMix = "AdEMAMix"
    AdEMAMix_8BIT = "AdEMAMix_8BIT"
    ADOPT = "ADOPT"
    ADOPT_ADV = "ADOPT_ADV"
    LAMB = "LAMB"
    LAMB_8BIT = "LAMB_8BIT"
    LARS = "LARS"
    LARS_8BIT = "LARS_8BIT"
    LION = "LION"
    LION_8BIT = "LION_8BIT"
    LION_ADV = "LION_ADV"
    RMSPROP = "RMSPROP"
    RMSPROP_8BIT = "RMSPROP_8BIT"
    SGD = "SGD"
    SGD_8BIT = "SGD_8BIT"
    SIGNSGD_ADV = "SIGNSGD_ADV"
    SCHEDULE_FREE_ADAMW = "SCHEDULE_FREE_ADAMW"
    SCHEDULE_FREE_SGD = "SCHEDULE_FREE_SGD"
    DADAPT_ADA_GRAD = "DADAPT_ADA_GRAD"
    DADAPT_ADAM = "DADAPT_ADAM"
    DADAPT_ADAN = "DADAPT_ADAN"
    DADAPT_LION = "DADAPT_LION"
    DADAPT_SGD = "DADAPT_SGD"
    PRODIGY = "PRODIGY"
    PRODIGY_PLUS_SCHEDULE_FREE = "PRODIGY_PLUS_SCHEDULE_FREE"
    PRODIGY_ADV = "PRODIGY_ADV"
    ADAFACTOR = "ADAFACTOR"
    CAME = "CAME"
    CAME_8BIT = "CAME_8BIT"
    MUON = "MUON"
    MUON_ADV = "MUON_ADV"
    ADAMUON_ADV = "ADAMUON_ADV"
    ADABELIEF = "ADABELIEF"
    TIGER = "TIGER"
    AIDA = "AIDA"
    YOGI = "YOGI"
