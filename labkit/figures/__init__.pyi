# The public names, and the module each is imported from when it is first used. `lazy_loader` reads
# this file, and so do type checkers.
from .front_figure import front as front
from .gradient_figure import gradient_picture as gradient_picture
from .gradient_figure import recipe_picture as recipe_picture
from .papers import picture_html as picture_html
from .picture import picture_bytes as picture_bytes
from .picture import save_picture as save_picture
from .probing_figures import benefit_against_harm as benefit_against_harm
from .probing_figures import effects_by_layer as effects_by_layer
from .probing_figures import effects_map as effects_map
from .probing_figures import gradients_compared as gradients_compared
from .shown_figure import ShownFigure as ShownFigure
from .survey_figures import gradient_over_norms as gradient_over_norms
from .survey_figures import heatmap as heatmap
from .survey_figures import norms_by_layer as norms_by_layer
from .survey_figures import overlap_by_layer as overlap_by_layer
from .survey_figures import side_by_side as side_by_side
from .survey_figures import singular_values as singular_values
from .survey_figures import survival_map as survival_map
