from .attention import *
from .block_matmul import *
from .experts import *
from .instructions import *
from .matmul import *
from .reference import *
