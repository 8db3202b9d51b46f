from .attention import *
from .block_matmul import *
from .experts import *
from .matmul import *
from .reference import *
