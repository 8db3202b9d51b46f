from .bfloat16 import *
from .block_matmul import *
from .experts import *
from .image_attention import *
from .matmul import *
from .paged_attention import *
from .reference import *
from .rope_store import *
