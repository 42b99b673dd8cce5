"""What networks are made to do: a task a file, each ends in one value."""

from limbeck.tasks.classification import classification as classification
from limbeck.tasks.multilabel import multilabel as multilabel
from limbeck.tasks.regression import regression as regression
from limbeck.tasks.segmentation import segmentation as segmentation
