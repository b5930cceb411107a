# The public names, and the module each is imported from when it is first used. `lazy_loader` reads
# this file, and so do type checkers.
from . import figures as figures
from .bench.lab import Lab as Lab
from .demonstration.base import demo as demo
from .demonstration.passages import demo_texts as demo_texts
from .errors import LabkitError as LabkitError
from .gradients.gradient import Gradient as Gradient
from .gradients.presets import preset as preset
from .inference.live_model import free as free
from .inference.live_model import live as live
from .merging.planning import Plan as Plan
from .merging.planning import plan as plan
from .merging.recipe import CardOptions as CardOptions
from .merging.recipe import Recipe as Recipe
from .merging.recipe import Term as Term
from .models.adapter import Adapter as Adapter
from .models.checkpoint import Checkpoint as Checkpoint
from .models.hollow import hollow_adapter as hollow_adapter
from .models.hollow import hollow_base as hollow_base
from .probing.evaluation import evaluate as evaluate
from .probing.layer_effects import ablation as ablation
from .probing.layer_effects import attribution as attribution
from .probing.layer_effects import sensitivity as sensitivity
from .probing.texts import Texts as Texts
from .publishing.baking import bake as bake
from .publishing.extraction import extract as extract
from .publishing.hub import push as push
from .publishing.interchange import export_recipe as export_recipe
from .publishing.interchange import import_recipe as import_recipe
from .publishing.recombination import combine as combine
from .publishing.recombination import resize as resize
from .surveys.adding_up import totals as totals
from .surveys.delta_survey import spectra as spectra
from .surveys.delta_survey import survey as survey
from .surveys.overlaps import overlap as overlap
from .surveys.rounding_loss import survival as survival
from .widgets.editor import GradientEditor as GradientEditor
from .widgets.plain_sliders import sliders as sliders
from .writing.receipt import Receipt as Receipt
from .writing.verification import verify as verify

__version__: str
