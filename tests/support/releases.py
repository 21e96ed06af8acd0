"""Models with the releases' names, arguments, behaviour and outputs, in plain PyTorch: somebody else's.

Written from the behaviour that the papers and the checkpoints show; the golden cases hold them to the numbers.
"""

import torch
import torch.nn.functional as F
from golden_cases import Case
from torch import nn

from crossmae.model.positions import sincos_positions


class PatchEmbed(nn.Module):
    def __init__(self, img_size, patch_size, in_chans, width):
        super().__init__()
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, width, patch_size, patch_size)

    def forward(self, images):
        return self.proj(images).flatten(2).transpose(1, 2)


def attend(query, key, value, heads):
    split = (tensor.unflatten(-1, (heads, -1)).transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x):
        return self.proj_drop(self.proj(attend(*self.qkv(x).chunk(3, -1), self.num_heads)))


class CrossAttention(nn.Module):
    def __init__(self, width, feature_width, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(feature_width, 2 * width)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x, y):
        return self.proj_drop(self.proj(attend(self.q(x), *self.kv(y).chunk(2, -1), self.num_heads)))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, width, heads, mlp_ratio, norm):
        super().__init__()
        self.norm1, self.attn, self.drop_path = norm(width), Attention(width, heads), nn.Identity()
        self.norm2, self.mlp = norm(width), Mlp(width, int(width * mlp_ratio))

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DecoderBlock(nn.Module):
    def __init__(self, width, feature_width, heads, mlp_ratio, norm, self_attn):
        super().__init__()
        if self_attn:
            self.norm0, self.self_attn = norm(width), Attention(width, heads)
        self.attends_to_itself = self_attn
        self.norm1, self.cross_attn = norm(width), CrossAttention(width, feature_width, heads)
        self.norm2, self.mlp = norm(width), Mlp(width, int(width * mlp_ratio))

    def forward(self, x, y):
        if self.attends_to_itself:
            x = x + self.self_attn(self.norm0(x))
        x = x + self.cross_attn(self.norm1(x), y)
        return x + self.mlp(self.norm2(x))


class Mixing(nn.Module):
    def __init__(self, maps, blocks):
        super().__init__()
        self.linear = nn.Linear(maps, blocks, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, maps):
        return self.linear(torch.stack(maps, dim=-1))


def draw_order(images, patches):
    """Noise first, then which patches come first."""
    return torch.rand(len(images), patches, device=images.device).argsort(dim=1)


def patchify(images, patch):
    b, c, h, w = images.shape
    grid = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def rows(x, ids):
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[-1]))


class Release(nn.Module):
    """What both have in common. ``amp`` is the dtype of the autocast that its forward opens, if any."""

    def __init__(self, amp, norm_pix_loss, img_size, patch_size, in_chans, embed_dim, decoder_embed_dim):
        super().__init__()
        self.amp, self.norm_pix_loss = amp, norm_pix_loss
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        grid = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_embed_dim))
        self.pos_embed = nn.Parameter(sincos_positions(embed_dim, grid), requires_grad=False)
        self.decoder_pos_embed = nn.Parameter(sincos_positions(decoder_embed_dim, grid), requires_grad=False)

    def autocast(self, images):
        return torch.autocast(images.device.type, self.amp, enabled=self.amp is not None)

    def target(self, images):
        target = patchify(images, self.patch_embed.patch_size[0])
        if self.norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return target


class CrossMAE(Release):
    """The CrossMAE release: ``loss``, or ``(loss, pred, target, mask)`` with ``vis``."""

    def __init__(
        self, img_size=32, patch_size=8, in_chans=3, embed_dim=32, depth=3, num_heads=4, decoder_embed_dim=16,
        decoder_depth=2, decoder_num_heads=2, mlp_ratio=4.0, norm_pix_loss=False, weight_fm=True, use_fm=(-1,),
        use_input=False, self_attn=False, amp=None, eps=1e-6,
    ):  # fmt: skip
        super().__init__(amp, norm_pix_loss, img_size, patch_size, in_chans, embed_dim, decoder_embed_dim)
        norm = lambda width: nn.LayerNorm(width, eps=eps)  # noqa: E731
        every = list(use_fm) == [-1]
        self.weight_fm, self.use_input = weight_fm, use_input
        self.use_fm = list(range(depth)) if every else [block % depth for block in use_fm]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, norm) for _ in range(depth))
        self.wfm = Mixing(len(self.use_fm) + use_input, decoder_depth)
        self.dec_norms = nn.ModuleList(norm(embed_dim) for _ in range(decoder_depth))
        self.decoder_blocks = nn.ModuleList(
            DecoderBlock(decoder_embed_dim, embed_dim, decoder_num_heads, mlp_ratio, norm, self_attn)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)

    def forward(self, imgs, mask_ratio=0.75, kept_mask_ratio=0.75, vis=False):
        with self.autocast(imgs):
            x = self.patch_embed(imgs) + self.pos_embed[:, 1:]
            patches = x.shape[1]
            order = draw_order(imgs, patches)
            visible = int(patches * (1 - mask_ratio))
            left_out = int(patches * (mask_ratio - kept_mask_ratio))
            predicted = order[:, visible + left_out :].sort(1).values
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), rows(x, order[:, :visible])], dim=1)
            maps = [x] if self.use_input else []
            for index, block in enumerate(self.blocks):
                x = block(x)
                if index in self.use_fm:
                    maps.append(x)
            mixes = self.wfm(maps)
            queries = (self.mask_token + self.decoder_pos_embed[:, 1:]).expand(len(x), -1, -1)
            y = rows(queries, predicted)
            for index, block in enumerate(self.decoder_blocks):
                y = block(y, self.dec_norms[index](mixes[..., index]))
            pred = self.decoder_pred(self.decoder_norm(y))
            target = rows(self.target(imgs), predicted)
            loss = (pred - target).square().mean()
        if vis:
            mask = torch.zeros(len(imgs), patches, device=imgs.device).scatter(1, predicted, 1)
            return loss, pred, target, mask
        return loss


class MAE(Release):
    """MAE's release: ``(loss, pred, mask)``, all patches predicted; ``alone`` returns the loss only."""

    def __init__(
        self, img_size=32, patch_size=8, in_chans=3, embed_dim=32, depth=2, num_heads=4, decoder_embed_dim=16,
        decoder_depth=2, decoder_num_heads=2, mlp_ratio=4.0, norm_pix_loss=False, amp=None, alone=False,
    ):  # fmt: skip
        super().__init__(amp, norm_pix_loss, img_size, patch_size, in_chans, embed_dim, decoder_embed_dim)
        norm = lambda width: nn.LayerNorm(width, eps=1e-6)  # noqa: E731
        self.alone = alone
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, norm) for _ in range(depth))
        self.norm = norm(embed_dim)
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_embed_dim, decoder_num_heads, mlp_ratio, norm) for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)

    def forward(self, imgs, mask_ratio=0.75):
        with self.autocast(imgs):
            x = self.patch_embed(imgs) + self.pos_embed[:, 1:]
            patches = x.shape[1]
            order = draw_order(imgs, patches)
            visible = order[:, : int(patches * (1 - mask_ratio))]
            token = self.cls_token + self.pos_embed[:, :1]
            x = torch.cat([token.expand(len(x), -1, -1), rows(x, visible)], dim=1)
            for block in self.blocks:
                x = block(x)
            x = self.decoder_embed(self.norm(x))
            y = self.mask_token.to(x.dtype).expand(len(x), patches, -1)
            y = y.scatter(1, visible[:, :, None].expand(-1, -1, x.shape[-1]), x[:, 1:])
            y = torch.cat([x[:, :1], y], dim=1) + self.decoder_pos_embed
            for block in self.decoder_blocks:
                y = block(y)
            pred = self.decoder_pred(self.decoder_norm(y))[:, 1:]
            mask = torch.ones(len(imgs), patches, device=imgs.device).scatter(1, visible, 0)
            loss = ((pred - self.target(imgs)).square().mean(-1) * mask).sum() / mask.sum()
        return loss if self.alone else (loss, pred, mask)


def randomized(model, seed=0):
    """The model with biases and norms of its own too, and a class token's row of positions that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def golden(name):
    """The release's model of a golden case."""
    case = Case(name)
    model = (MAE if "decoder_embed.weight" in case.weights else CrossMAE)(**case.arguments)
    model.load_state_dict(case.weights)
    return model, case
