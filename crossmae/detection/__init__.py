"""Instance segmentation: ViTDet (arXiv 2203.16527) on a pretrained encoder, with torchvision's Mask R-CNN."""
