import torch
from models.batchnorm import set_bn_updates
def load_checkpoint_weights(model, path):
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"]); set_bn_updates(model, state["bn_updates"])
    return f"loaded {path}"
def load_encoder_decoder(model, e, d): raise NotImplementedError
