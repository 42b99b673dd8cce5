"""Data sets by name, as loaders of batches (inputs, targets, ids) that depend on nothing but seed, view and ids."""

from limbeck.data.epochs import Epochs as Epochs
from limbeck.data.files import FileLoader as FileLoader
from limbeck.data.items import Items as Items
from limbeck.data.items import ragged as ragged
from limbeck.data.items import stacked as stacked
from limbeck.data.loader import Loader as Loader
from limbeck.data.rows import Rows as Rows
from limbeck.data.sets import Data as Data
from limbeck.data.sets import describe as describe
from limbeck.data.sets import load as load
from limbeck.data.sets import names as names
